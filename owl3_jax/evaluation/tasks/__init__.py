"""The tasks that `eval.tasks` can name. A new one is a file here, and a line in `TASKS`."""

from collections.abc import Callable

from owl3_jax.config import ConfigError, EvalConfig
from owl3_jax.evaluation.task import AnyTask
from owl3_jax.evaluation.tasks.digits_exact import ExactMatch
from owl3_jax.evaluation.tasks.distractor_resistance import DistractorResistance

TASKS: dict[str, Callable[[EvalConfig], AnyTask]] = {
    ExactMatch.name: ExactMatch,
    DistractorResistance.name: DistractorResistance,
}


def make_tasks(config: EvalConfig) -> list[AnyTask]:
    """The tasks of `config.tasks`, in this order.

    Raises ConfigError when one is unknown, or asks for what its data does not have.
    """
    for name in config.tasks:
        if name not in TASKS:
            raise ConfigError(f"eval.tasks: unknown task {name!r}; known tasks: {', '.join(TASKS)}")
    return [TASKS[name](config) for name in config.tasks]
