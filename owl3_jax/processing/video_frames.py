"""Which packets of a video file must be decoded for given frames: arithmetic on what demuxing yields.

A file stores its packets in decoding order: a frame that refers to a later one (a B-frame) comes after it. Frames are
numbered in order of presentation, and decoding must start at a keyframe (K):

    packet   0K 1  2  3  4K 5  6  7
    time     0  3  1  2  4  7  5  6
    frame 2 needs packets 0 to 3, frame 6 needs packets 4 to 7
"""

import dataclasses
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple


class PacketInfo(NamedTuple):
    """What is known of one packet of a video stream without decoding it."""

    time: int | None  # presentation time in ticks of the stream
    is_keyframe: bool
    is_shown: bool  # False: others may refer to its frame, but no viewer displays it


@dataclasses.dataclass(frozen=True)
class FrameTable:
    """Where the frames of a video stream are; packets are counted in the order of the file."""

    times: Sequence[int] | None  # presentation time of each packet; None: unknown, so frames are counted
    keys: Sequence[int]  # packets that are keyframes
    positions: Sequence[int]  # packet of each frame
    fps: Fraction  # average frames per second; 0: unknown

    @property
    def num_frames(self) -> int:
        """Frames that a viewer displays."""
        return len(self.positions)

    def numbers(self) -> dict[int, int] | None:
        """Presentation time to frame number, None when times are unknown."""
        if self.times is None:
            return None
        return {self.times[position]: number for number, position in enumerate(self.positions)}

    def runs(self, wanted: Sequence[int]) -> list[range]:
        """The packets to decode for the frames `wanted`: ranges that each start at a keyframe and do not overlap."""
        if self.times is None:
            return [range(self.positions[-1] + 1)]  # the caller counts, and stops
        runs = [_run(self.times, self.keys, self.positions[frame]) for frame in wanted]
        return _merged(sorted(runs, key=lambda run: run.start))


def frame_table(packets: Sequence[PacketInfo], fps: Fraction) -> FrameTable:
    """The table of a stream whose packets, in the order of the file, start with a keyframe."""
    keys = [position for position, packet in enumerate(packets) if packet.is_keyframe]
    positions = [position for position, packet in enumerate(packets) if packet.is_shown]
    times = [packet.time for packet in packets if packet.time is not None]
    if not _are_sound(times, keys, len(packets)):
        return FrameTable(None, keys, positions, fps)
    return FrameTable(times, keys, sorted(positions, key=times.__getitem__), fps)


def _are_sound(times: Sequence[int], keys: Sequence[int], num_packets: int) -> bool:
    # Some AVI files guess the times of B-frames, and joined recordings start over.
    if len(set(times)) < num_packets:
        return False
    key_times = [times[key] for key in keys]
    return key_times == sorted(key_times)


def _run(times: Sequence[int], keys: Sequence[int], position: int) -> range:
    # A frame shown before a keyframe may refer to packets before that keyframe, even when it is stored after it.
    starts = [key for key in keys if key <= position and times[key] <= times[position]]
    return range(max(starts, default=0), position + 1)


def _merged(runs: Sequence[range]) -> list[range]:
    merged: list[range] = []
    for run in runs:
        if merged and run.start < merged[-1].stop:
            merged[-1] = range(merged[-1].start, max(merged[-1].stop, run.stop))
        else:
            merged.append(run)
    return merged
