"""Which packets are decoded for which frames, on packets written by hand."""

from collections.abc import Sequence
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from owl3_jax.processing.video_frames import Clock, FrameTable, PacketInfo, frame_table


def table(times: Sequence[int | None], keys: Sequence[int], hidden: Sequence[int] = ()) -> FrameTable:
    packets = [PacketInfo(time, index in keys, index not in hidden) for index, time in enumerate(times)]
    return frame_table(packets, Clock(Fraction(1, 25)))


CLOSED = table([0, 3, 1, 2, 4, 7, 5, 6], keys=[0, 4])
OPEN = table([0, 3, 1, 2, 6, 4, 5, 9, 7, 8], keys=[0, 4])  # 4 and 5 are shown before the keyframe that stands before them


def test_frames_are_numbered_in_order_of_presentation():
    assert CLOSED.positions == [0, 2, 3, 1, 4, 6, 7, 5]
    assert CLOSED.numbers() == {time: time for time in range(8)}
    assert table([50, 20, 90], keys=[0]).numbers() == {20: 0, 50: 1, 90: 2}


@pytest.mark.parametrize(
    ("frames", "wanted", "runs"),
    [
        (CLOSED, [2], [range(0, 4)]),
        (CLOSED, [6], [range(4, 8)]),
        (CLOSED, [3], [range(0, 2)]),
        (CLOSED, [1, 3], [range(0, 3)]),
        (CLOSED, [0, 4], [range(0, 1), range(4, 5)]),
        (CLOSED, [3, 4], [range(0, 2), range(4, 5)]),
        (OPEN, [5], [range(0, 7)]),
        (OPEN, [6], [range(4, 5)]),
        (OPEN, [5, 8], [range(0, 10)]),
        (table(range(6), keys=range(6)), [1, 2, 5], [range(1, 2), range(2, 3), range(5, 6)]),
    ],
)
def test_decoding_starts_at_a_keyframe_and_ends_at_a_wanted_frame(frames, wanted, runs):
    assert frames.runs(wanted) == runs


def test_a_hidden_packet_is_decoded_but_no_frame():
    frames = table([0, 1, 2, 3], keys=[0], hidden=[0, 2])
    assert frames.num_frames == 2
    assert frames.numbers() == {1: 0, 3: 1}
    assert frames.runs([1]) == [range(0, 4)]


@pytest.mark.parametrize("times", [[0, 3, None, 2], [0, 2, 1, 2], [5, 6, 0, 1]])
def test_without_sound_times_frames_are_counted_from_the_first_packet(times):
    frames = table(times, keys=[0, 2])
    assert frames.num_frames == 4
    assert frames.numbers() is None
    assert frames.runs([1]) == [range(0, 4)]


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=8), st.data())
def test_runs_hold_what_is_wanted_and_never_overlap(groups, data):
    keys = [sum(groups[:index]) for index in range(len(groups))]
    inner = [data.draw(st.permutations(range(key + 1, key + size))) for key, size in zip(keys, groups, strict=True)]
    frames = table([time for key, times in zip(keys, inner, strict=True) for time in (key, *times)], keys)
    wanted = data.draw(st.lists(st.integers(0, frames.num_frames - 1), min_size=1, unique=True).map(sorted))
    runs = frames.runs(wanted)
    decoded = [position for run in runs for position in run]
    assert decoded == sorted(set(decoded))
    assert {frames.positions[frame] for frame in wanted} <= set(decoded)
    assert all(run.start in keys for run in runs)
    assert all(run[-1] in [frames.positions[frame] for frame in wanted] for run in runs)
