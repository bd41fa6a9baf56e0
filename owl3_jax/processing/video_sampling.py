"""Which frames of a video the model sees: the official rules, as functions of the frame count and the frame rate."""

import dataclasses
import itertools
import typing
from fractions import Fraction

import numpy as np

from owl3_jax.config import FrameRule


@typing.runtime_checkable
class FrameSampling(typing.Protocol):
    """A rule by which frames are chosen."""

    def indices(self, num_frames: int, fps: Fraction | float) -> list[int]:
        """The frames to take of a video, in rising order; one may be there several times.

        Raises ValueError when there is none to take.
        """
        ...


@dataclasses.dataclass(frozen=True)
class VideoSampling:
    """How frames are chosen from a video file or a folder of frames.

    `per_second` takes about one frame a second, and `max_frames` of these, evenly spread, when they are more: the rule of
    the model cards. `middle` takes the middle frames of `max_frames` equal parts: the rule of the official evaluation.

    Raises ValueError when a value is out of its range.
    """

    max_frames: int = 16
    rule: FrameRule = "per_second"

    def __post_init__(self) -> None:
        if self.max_frames < 1:
            raise ValueError(f"max_frames is {self.max_frames}; a video needs at least one frame")
        if self.rule not in typing.get_args(FrameRule):
            raise ValueError(f"the sampling rule is {self.rule!r}; it must be one of {', '.join(typing.get_args(FrameRule))}")

    def indices(self, num_frames: int, fps: Fraction | float) -> list[int]:
        """The frames to take, in ascending order; `middle` may name the last one several times.

        Args:
            num_frames: frames of the whole video, at least one.
            fps: its average frames per second; only `per_second` looks at it.
        """
        if self.rule == "per_second":
            return per_second_indices(num_frames, fps, self.max_frames)
        return middle_indices(num_frames, self.max_frames)


def per_second_indices(num_frames: int, fps: Fraction | float, max_frames: int) -> list[int]:
    """Every `round(fps)`-th frame from the first on, thinned evenly to `max_frames` (README of the released models).

    Below 0.5 frames per second it gives every frame, as ms-swift does; the README's own code would fail there.
    """
    step = max(round(fps), 1)
    taken = range(0, num_frames, step)
    if len(taken) <= max_frames:
        return list(taken)
    gap = len(taken) / max_frames
    return [taken[int(i * gap + gap / 2)] for i in range(max_frames)]


def middle_indices(num_frames: int, max_frames: int, first: int = 0) -> list[int]:
    """The middle frames of `max_frames` equal parts (the official evaluation's reader of whole videos).

    The result always has `max_frames` entries: a video with fewer frames gives all of them and repeats its last one. The
    video is that of `num_frames` frames from `first` on.
    """
    parts = min(max_frames, num_frames)
    # Truncated floats, as in the official code: exact integers would move an edge where a float is just below one.
    edges = np.linspace(first, first + num_frames, parts + 1).astype(int).tolist()
    middles = [(start + stop - 1) // 2 for start, stop in itertools.pairwise(edges)]
    return middles + middles[-1:] * (max_frames - parts)
