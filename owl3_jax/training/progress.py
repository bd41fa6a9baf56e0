"""What a run prints: a bar on a terminal, plain lines elsewhere, nothing on any process but the first."""

import sys

from tqdm import tqdm

from owl3_jax.training.metrics import Values, format_values


class Progress:
    """Prints a run's lines and how far it is. A context manager.

    Args:
        step: steps already taken.
        steps: of the whole run.
        silent: prints nothing.
    """

    def __init__(self, step: int, steps: int, *, silent: bool = False) -> None:
        self._steps = steps
        self._silent = silent
        bar = sys.stdout.isatty() and not silent
        self._bar = tqdm(total=steps, initial=step, unit="step", file=sys.stdout, dynamic_ncols=True, disable=not bar)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()

    def say(self, line: str) -> None:
        """Prints a line, above the bar."""
        if not self._silent:
            tqdm.write(line, file=sys.stdout)
            sys.stdout.flush()

    def advance(self) -> None:
        """One step more."""
        self._bar.update()

    def report(self, step: int, values: Values) -> None:
        """Shows one report: beside the bar, or as a line."""
        if self._bar.disable:
            self.say(f"step {step}/{self._steps}  {format_values(values)}")
        else:
            self._bar.set_postfix_str(format_values(values))
