"""Where the time of an answer goes, measured on request: waiting for each stage's arrays keeps stages from overlapping."""

import contextlib
import time
from collections.abc import Iterator
from typing import Literal, get_args

import jax

Stage = Literal["media", "vision", "prefill", "decode"]  # reading images and video, the vision tower, reading text, answering
STAGES: tuple[Stage, ...] = get_args(Stage)


class Clock:
    """Seconds by stage, while it is `running`; otherwise it costs and waits for nothing."""

    def __init__(self) -> None:
        self.running = False
        self.seconds: dict[Stage, float] = dict.fromkeys(STAGES, 0.0)

    @contextlib.contextmanager
    def stage(self, name: Stage) -> Iterator[list[object]]:
        """Counts the time of the block for a stage, and that until the arrays are computed which it appends to its list."""
        computed: list[object] = []
        start = time.monotonic()
        yield computed
        if self.running:
            jax.block_until_ready(computed)
            self.seconds[name] += time.monotonic() - start

    def shares(self) -> dict[Stage, float]:
        """Each stage's share of all measured time; zeros where nothing was measured."""
        total = sum(self.seconds.values())
        return {name: seconds / total if total else 0.0 for name, seconds in self.seconds.items()}
