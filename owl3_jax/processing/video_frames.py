"""Which packets of a video file must be decoded for given frames: arithmetic on what demuxing yields.

A file stores its packets in decoding order: a frame that refers to a later one (a B-frame) comes after it. Frames are
numbered in order of presentation, and decoding must start at a keyframe (K):

    packet   0K 1  2  3  4K 5  6  7
    time     0  3  1  2  4  7  5  6
    frame 2 needs packets 0 to 3, frame 6 needs packets 4 to 7
"""

import dataclasses
import itertools
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

_RATE_TOLERANCE = Fraction(1, 10)  # dropped frames; a rate that is further off is not that of the frames


class PacketInfo(NamedTuple):
    """What is known of one packet of a video stream without decoding it."""

    time: int | None  # presentation time in ticks of the stream
    is_keyframe: bool
    is_shown: bool  # False: others may refer to its frame, but no viewer displays it
    decoding_time: int | None = None


class Clock(NamedTuple):
    """What a file states about the times of its frames."""

    tick: Fraction  # unit of times, in seconds
    stated_fps: Fraction = Fraction(0)  # 0: unknown
    reorders: bool = False  # the decoder reorders frames, while the container has one time a packet: ascending, it says nothing


@dataclasses.dataclass(frozen=True)
class FrameTable:
    """Where the frames of a video stream are; packets are counted in the order of the file."""

    times: Sequence[int] | None  # presentation time of each packet; None: unknown, so frames are counted
    keys: Sequence[int]  # packets that are keyframes
    positions: Sequence[int]  # packet of each frame
    fps: Fraction  # average frames per second (see `average_fps`); 0: unknown

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


def frame_table(packets: Sequence[PacketInfo], clock: Clock) -> FrameTable:
    """The table of a stream whose packets, in the order of the file, start with a keyframe."""
    keys = [position for position, packet in enumerate(packets) if packet.is_keyframe]
    positions = [position for position, packet in enumerate(packets) if packet.is_shown]
    times = [packet.time for packet in packets if packet.time is not None]
    if _are_sound(times, keys, len(packets), clock):
        positions.sort(key=times.__getitem__)
        return FrameTable(times, keys, positions, average_fps([times[position] for position in positions], clock))
    known = (_decoding_time(packets[position]) for position in positions)
    return FrameTable(None, keys, positions, average_fps([time for time in known if time is not None], clock))


def average_fps(times: Sequence[int], clock: Clock) -> Fraction:
    """The stated rate if the times of the frames agree with it within a tenth, otherwise the rate that follows from them.

    A header's rate may be nonsense where the rate varies: 1000 or 30000, the number of ticks in a second.

    Args:
        times: of the frames in order, in ticks; where they go backwards a recording starts over.
        clock: the unit, and what is stated.
    """
    steps = [after - before for before, after in itertools.pairwise(times) if after >= before]
    ticks = sum(steps)
    if not ticks:
        return clock.stated_fps
    # Times are rounded to ticks, which matters in short videos.
    fewest, most = (clock.stated_fps * clock.tick * around for around in (ticks - 1, ticks + 1))
    if fewest * (1 - _RATE_TOLERANCE) <= len(steps) <= most * (1 + _RATE_TOLERANCE):
        return clock.stated_fps
    return len(steps) / (ticks * clock.tick)


def _are_sound(times: Sequence[int], keys: Sequence[int], num_packets: int, clock: Clock) -> bool:
    # Some AVI files guess the times of B-frames, and joined recordings start over.
    if len(set(times)) < num_packets:
        return False
    if clock.reorders and list(times) == sorted(times):
        return False
    key_times = [times[key] for key in keys]
    return key_times == sorted(key_times)


def _decoding_time(packet: PacketInfo) -> int | None:
    return packet.time if packet.decoding_time is None else packet.decoding_time


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
