"""Times of both sides, taken in turn: a slow minute of the machine hits both."""

import dataclasses
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from .sides import Ours, Torch

_DECODED = 8  # tokens of one timed call of ours
_DECODED_BY_TORCH = 2  # its time a token does not depend on how many there are
_MOST_IMAGES_READ_AGAIN = 256
_MOST_IMAGES_ENCODED = 64  # for more, the vision tower only repeats the same batch


@dataclasses.dataclass
class Times:
    """Runs of one side, seconds."""

    vision: list[float] = dataclasses.field(default_factory=list)  # an image
    prefill: list[float] = dataclasses.field(default_factory=list)  # features given, up to the first token
    decode: list[float] = dataclasses.field(default_factory=list)  # a token

    def medians(self) -> dict[str, float]:
        """Medians of the phases that were measured."""
        return {name: statistics.median(runs) for name, runs in vars(self).items() if runs}


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One number of images."""

    images: int
    tokens: int  # of the prompt
    ours: Times
    torch: Times | None
    bytes_per_s: float  # of memory, between the rounds
    decode_of_one: float  # seconds a token of ours with one image, between the rounds
    tokens_of_one: int  # of that prompt
    peak_bytes: int  # of the process: ours, and PyTorch's too where it ran

    def line(self) -> str:
        """For the progress on stderr."""
        sides = {"ours": self.ours, "torch": self.torch}
        times = [f"{name} {time.medians()}" for name, time in sides.items() if time]
        return f"{self.images} images: " + "; ".join(times)


def most_tokens(repeats: int) -> int:
    """Tokens that are decoded after a prompt that is read once for all rounds."""
    return 2 + _DECODED * (repeats + 1)


def measure(images: int, ours: Ours, torch: Torch | None, repeats: int, bandwidth: Callable[[], float]) -> Measurement:
    """Medians over `repeats` rounds; in each, ours, PyTorch's, ours with one image and the memory's run one after the other.
    The first round is thrown away.

    Beyond 256 images the prompt is read once, after its programs are compiled, and decoded in every round.
    """
    reset_peak()
    times, theirs = Times(), Times() if torch else None
    runs_of_one, rates, one = [], [], ours.with_own_prompt()
    reads = repeats if images <= _MOST_IMAGES_READ_AGAIN else 1
    for number in range(repeats + 1):
        _round(times, ours, images, _DECODED, read=number <= reads, keep=number >= reads and number < repeats)
        if torch and theirs:
            _round(theirs, torch, images, _DECODED_BY_TORCH)
        runs_of_one.append(_decode_from_one_image(one, 1))
        rates.append(bandwidth())
    for side in (times, theirs):
        for runs in vars(side).values() if side else ():
            del runs[:1]  # compilation, first touch of memory
    rate, of_one = statistics.median(rates[1:]), statistics.median(runs_of_one[1:])
    return Measurement(images, ours.tokens(images), times, theirs, rate, of_one, ours.tokens(1), peak_bytes())


def measure_batch(ours: Ours, rows: int, repeats: int) -> dict[str, float]:
    """Tokens a second of `rows` prompts of one image decoded together, and of one."""
    runs: dict[int, list[float]] = {1: [], rows: []}
    for _ in range(repeats + 1):
        for size, times in runs.items():
            times.append(_decode_from_one_image(ours, size) / size)
    one, together = (1 / statistics.median(times[1:]) for times in runs.values())
    return {"rows": rows, "tokens_per_s_of_one": one, "tokens_per_s_together": together, "ratio": together / one}


def _decode_from_one_image(ours: Ours, rows: int) -> float:
    ours.read(1, rows)
    ours.decode(1)
    seconds = _seconds(lambda: ours.decode(_DECODED)) / _DECODED
    ours.reset()
    return seconds


def _round(times: Times, side: Ours | Torch, images: int, tokens: int, *, read: bool = True, keep: bool = False) -> None:
    if images <= _MOST_IMAGES_ENCODED:
        times.vision.append(_seconds(side.encode) / side.images_per_batch)
    if read:
        times.prefill.append(_seconds(lambda: side.read(images)))
        side.decode(1)
    times.decode.append(_seconds(lambda: side.decode(tokens)) / tokens)
    if not keep:
        side.reset()


def _seconds(call: Callable[[], None]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def reset_peak() -> None:
    """Restarts the measurement of peak memory, where Linux allows it."""
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")


def peak_bytes() -> int:
    """Peak memory of this process since `reset_peak`; 0 where it is unknown."""
    status = Path("/proc/self/status")
    fields = dict(line.split(":", 1) for line in status.read_text().splitlines()) if status.exists() else {}
    return int(fields["VmHWM"].split()[0]) * 1024 if "VmHWM" in fields else 0
