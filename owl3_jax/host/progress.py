"""The progress bar of the project: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from typing import Protocol, runtime_checkable

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 10.0  # a good `lines_every`
_SECONDS_UNSEEN = 0.5  # a single image needs no bar


@runtime_checkable
class Stream(Protocol):
    """What `Progress` needs of a file: standard output, standard error, or a test's own."""

    def write(self, text: str, /) -> int: ...

    def flush(self) -> None: ...

    def isatty(self) -> bool: ...


class Progress:
    """Shows how much of a piece of work is done. A context manager.

    Args:
        total: units of the whole work; None until `advance` is given it.
        unit: the name of one, such as "step"; sizes in "B" are shown as kB, MB and so on.
        description: text in front of the bar.
        done: units that were done before.
        file: where to print; standard output by default.
        silent: print nothing.
        keep: leave the bar on the screen; otherwise it vanishes with the last unit.
        delay: seconds until the bar appears.
        lines_every: seconds between lines where there is no terminal, and a last line at the end; None prints none.
        line: the text of such a line, with `{done}`, `{total}` and `{unit}`.
    """

    def __init__(
        self,
        total: int | None,
        unit: str,
        *,
        description: str = "",
        done: int = 0,
        file: Stream | None = None,
        silent: bool = False,
        keep: bool = True,
        delay: float = 0.0,
        lines_every: float | None = None,
        line: str = "{done}/{total} {unit}s",
    ) -> None:
        self.total, self.done = total, done
        self._unit, self._line, self._lines_every = unit, line, None if silent else lines_every
        self._silent, self._keep = silent, keep
        self._file = file or sys.stdout
        self._next_line = time.monotonic() + (lines_every or 0.0)
        self._bar = tqdm(
            desc=description or None,
            total=total,
            initial=done,
            unit=unit,
            unit_scale=unit == "B",
            file=self._file,
            leave=keep,
            delay=delay,
            dynamic_ncols=True,
            disable=silent or not self._file.isatty(),
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the bar. Leaving the context does so too."""
        self._bar.close()

    def advance(self, count: int = 1, total: int | None = None) -> None:
        """Counts `count` more units as done; `total` is how many there are, for work whose size is known only while it runs."""
        self.done += count
        self.total = self._bar.total = total if total is not None else self.total
        self._bar.update(count)
        if self.done == self.total and not self._keep:
            self.close()
        if self._lines_every is not None and self._bar.disable:
            self._print_line_when_due(self._lines_every)

    def _print_line_when_due(self, seconds: float) -> None:
        if time.monotonic() >= self._next_line or self.done == self.total:
            self.say(self._line.format(done=self._amount(self.done), total=self._amount(self.total), unit=self._unit))
            self._next_line = time.monotonic() + seconds

    def _amount(self, units: int | None) -> str:
        if units is None:
            return "?"
        return f"{tqdm.format_sizeof(units)}B" if self._unit == "B" else str(units)

    def say(self, line: str) -> None:
        """Prints a line, above the bar."""
        if not self._silent:
            tqdm.write(line, file=self._file)
            self._file.flush()

    def note(self, text: str) -> None:
        """Shows `text` next to the bar; without a bar, prints it as a line after the number of units done."""
        if self._bar.disable:
            self.say(f"{self._unit} {self.done}/{self.total}  {text}")
        else:
            self._bar.set_postfix_str(text)


def reading_images() -> Progress:
    """The bar for the images of a prompt, on a terminal only. It vanishes when the last one is read."""
    return Progress(None, "image", description="reading images", file=sys.stderr, keep=False, delay=_SECONDS_UNSEEN)
