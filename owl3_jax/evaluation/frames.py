"""Which frames of a video a benchmark shows: the released evaluation's rules, without their random draws."""

import dataclasses
from fractions import Fraction

from owl3_jax.evaluation.question import Excerpt
from owl3_jax.processing.video_sampling import FrameSampling, VideoSampling, middle_indices


@dataclasses.dataclass(frozen=True)
class ClipSampling:
    """The middle frames of `frames` equal parts of a clip; the released code draws a random one of each part."""

    frames: int
    start: float  # seconds
    end: float

    def indices(self, num_frames: int, fps: Fraction | float) -> list[int]:
        """See `FrameSampling`."""
        first, stop = max(int(fps * self.start), 0), min(int(fps * self.end), num_frames)
        if stop <= first:
            raise ValueError(f"the clip from {self.start:g} s to {self.end:g} s has no frame in a video of {num_frames}")
        return middle_indices(stop - first, self.frames, first)


@dataclasses.dataclass(frozen=True)
class FolderSampling:
    """Images of a folder that were taken at a known rate, between two times: MVBench's episodes."""

    frames: int
    start: float
    end: float
    fps: float

    def indices(self, num_frames: int, fps: Fraction | float) -> list[int]:
        """See `FrameSampling`; what a folder says about its rate is nothing."""
        del fps
        first, stop = max(1, round(self.fps * self.start)), min(round(self.fps * self.end), num_frames)
        if stop < first:
            raise ValueError(f"the clip from {self.start:g} s to {self.end:g} s has no image in a folder of {num_frames}")
        gap = (stop - first) / self.frames
        numbers = [int(first + gap / 2 + round(gap * place)) for place in range(self.frames)]  # counted from 1
        return sorted(min(number, num_frames) - 1 for number in numbers)


@dataclasses.dataclass(frozen=True)
class SharedSampling:
    """Of the frames that another rule takes, the middle ones of `frames` equal parts: features are computed once for all."""

    frames: int
    among: FrameSampling

    def indices(self, num_frames: int, fps: Fraction | float) -> list[int]:
        """See `FrameSampling`."""
        taken = self.among.indices(num_frames, fps)
        return [taken[place] for place in middle_indices(len(taken), self.frames)]


def sampling_of(excerpt: Excerpt) -> FrameSampling:
    """The rule for a video."""
    if excerpt.share and excerpt.frames < max(excerpt.share):
        return SharedSampling(excerpt.frames, _sampling(excerpt, max(excerpt.share)))
    return _sampling(excerpt, excerpt.frames)


def _sampling(excerpt: Excerpt, frames: int) -> FrameSampling:
    if excerpt.start is None or excerpt.end is None:
        return VideoSampling(frames, "middle")
    if excerpt.folder_fps is not None:
        return FolderSampling(frames, excerpt.start, excerpt.end, excerpt.folder_fps)
    return ClipSampling(frames, excerpt.start, excerpt.end)
