"""Which packets are decoded for which frames, on packets written by hand."""

from collections.abc import Sequence
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from owl3_jax.processing.video_frames import Clock, FrameTable, PacketInfo, average_fps, frame_table


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


def test_ascending_times_say_nothing_where_the_decoder_reorders():
    packets = [PacketInfo(time, time == 0, True, time) for time in range(6)]
    assert frame_table(packets, Clock(Fraction(1, 25), reorders=True)).numbers() is None
    assert frame_table(packets, Clock(Fraction(1, 25))).numbers() is not None
    reordered = [PacketInfo(time, time == 0, True) for time in (0, 3, 1, 2)]
    assert frame_table(reordered, Clock(Fraction(1, 25), reorders=True)).numbers() is not None


@pytest.mark.parametrize(
    ("times", "tick", "stated", "expected"),
    [
        (range(0, 3000, 40), Fraction(1, 1000), 25, 25),
        ([0, 33, 67, 100, 133, 167], Fraction(1, 1000), Fraction(30000, 1001), Fraction(30000, 1001)),  # rounded times
        ([0, 8], Fraction(1, 1000), 120, 120),
        ([frame for frame in range(300) if frame % 20], Fraction(1, 30), 30, 30),  # one in twenty was dropped
        (range(0, 20_000, 500), Fraction(1, 1000), 1000, 2),
        (range(0, 600_000, 15_000), Fraction(1, 30_000), 30_000, 2),
        (range(0, 20_000, 500), Fraction(1, 1000), 90_000, 2),
        (range(0, 20_000, 40), Fraction(1, 1000), 1, 25),
        (range(0, 20_000, 40), Fraction(1, 1000), 0, 25),
        ([0, 10_000], Fraction(1, 1000), 30, Fraction(1, 10)),
        ([0, 1, 1000, 1001, 2000], Fraction(1, 1000), 1000, 2),
        ([-50, -10, 30], Fraction(1, 1000), 0, 25),
        ([*range(0, 1000, 40), *range(0, 1000, 40)], Fraction(1, 1000), 0, 25),  # a recording starts over
        ([5], Fraction(1, 1000), 30, 30),
        ([5, 5], Fraction(1, 1000), 30, 30),
        ([], Fraction(1, 1000), 0, 0),
    ],
)
def test_the_rate_is_the_stated_one_if_the_times_agree(times, tick, stated, expected):
    assert average_fps(times, Clock(tick, Fraction(stated))) == expected


def test_the_rate_counts_what_is_shown_in_the_order_of_presentation():
    packets = [PacketInfo(time, time == 0, time != 1000) for time in (0, 3000, 1000, 2000)]
    assert frame_table(packets, Clock(Fraction(1, 1000))).fps == Fraction(2, 3)


def test_without_sound_times_the_rate_follows_from_those_of_decoding():
    packets = [PacketInfo(None, index == 0, True, 500 * index) for index in range(4)]
    assert frame_table(packets, Clock(Fraction(1, 1000), Fraction(1000))).fps == 2


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
