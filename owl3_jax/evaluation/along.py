"""Scores of tasks on the way of a training run, by the parameters that it trains, where they are."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from owl3_jax.config import Config, ConfigError
from owl3_jax.evaluation.answering import Key, answer_questions
from owl3_jax.evaluation.asked import Asked, Selection, ask_all
from owl3_jax.evaluation.data_root import DataRoot
from owl3_jax.evaluation.run import samples_of
from owl3_jax.evaluation.samples import by_task, write_samples
from owl3_jax.evaluation.tasks import choose
from owl3_jax.inference.engine import Engine
from owl3_jax.inference.results import Record
from owl3_jax.inference.runtime import Runtime, usual_vision_batch
from owl3_jax.params import Params
from owl3_jax.processing.processor import Processor


class TaskScorer:
    """`owl3_jax.training.validation.Scorer` of `validation.tasks`. The answers are in `validation/STEP/` of the workdir."""

    def __init__(self, config: Config, workdir: Path) -> None:
        """Reads the questions. Raises ConfigError and DataError where there are none."""
        settings = config.validation
        self._config, self._workdir = config, workdir
        self._data = DataRoot(settings.data_root, config.eval)
        self._tasks = choose(settings.tasks, config.eval.frames).tasks
        selection = Selection(settings.questions, seed=config.eval.seed)
        self._asked: list[Asked] = ask_all(self._tasks.values(), self._data, selection)
        if unscored := [name for name in self._tasks if not self._has_answers(name)]:
            raise ConfigError(f"validation.tasks: {', '.join(unscored)} has no answers to score against here")

    def __call__(
        self, params: Params, mesh: Mesh, processor: Processor, step: int, must_stop: Callable[[], bool]
    ) -> dict[str, float]:
        """`eval/TASK/METRIC` of each task, as the released code scores. Raises StoppedError."""
        folder = self._workdir / "validation" / str(step)
        path = folder / "answers.jsonl"
        if jax.process_index() == 0:
            path.unlink(missing_ok=True)  # of an earlier life of this run
        config = self._config
        batch = config.eval.vision_batch_size or usual_vision_batch(mesh)
        engine = Engine(Runtime(config.model, config.compute.without_quantization(), params, mesh, batch), processor.tokenizer)
        records, _ = answer_questions(self._asked, self._data, path, config.model, processor, lambda: engine, must_stop)
        return _same_everywhere(self._scores(folder, records) if jax.process_index() == 0 else None)

    def _has_answers(self, task: str) -> bool:
        return any(each.question.gold is not None for each in self._asked if each.task.name == task)

    def _scores(self, folder: Path, records: Mapping[Key, Record]) -> dict[str, float]:
        samples = samples_of(self._asked, records)
        write_samples(folder, samples)
        answered = {name: [each.answered for each in part] for name, part in by_task(samples).items()}
        scores = {name: self._tasks[name].score(each)["official"] for name, each in answered.items()}
        return {f"eval/{name}/{metric}": value.value for name, part in scores.items() for metric, value in part.items()}


def _same_everywhere(scores: dict[str, float] | None) -> dict[str, float]:
    """What the first process has, in all of them."""
    if jax.process_count() == 1:
        assert scores is not None
        return scores
    text = np.frombuffer(json.dumps(scores).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    sent = np.resize(text, size)  # the other processes have nothing to send, but the shape
    received: dict[str, float] = json.loads(bytes(np.asarray(multihost_utils.broadcast_one_to_all(sent)).astype(np.uint8)))
    return received
