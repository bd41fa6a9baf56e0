"""Which frames are taken, against the examples of the official code and as properties."""

import subprocess
import sys
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from owl3_jax.processing.video_sampling import VideoSampling, middle_indices, per_second_indices

NUM_FRAMES = st.integers(1, 5000)
FPS = st.one_of(st.just(0.0), st.floats(0.1, 240), st.fractions(Fraction(1, 10), 240, max_denominator=1001))
MAX_FRAMES = st.integers(1, 200)


@pytest.mark.parametrize(
    ("num_frames", "fps", "max_frames", "expected"),
    [
        (300, 29.97, 16, list(range(0, 300, 30))),
        (1800, 30.0, 16, [30, 150, 270, 390, 480, 600, 720, 840, 930, 1050, 1170, 1290, 1380, 1500, 1620, 1740]),
        (300, Fraction(30000, 1001), 16, list(range(0, 300, 30))),
        (7, 2.5, 16, [0, 2, 4, 6]),  # halves round to the even number
        (7, 0.4, 16, [0, 1, 2, 3, 4, 5, 6]),
        (7, 0.0, 16, [0, 1, 2, 3, 4, 5, 6]),
        (1, 30.0, 16, [0]),
        (10, 1.0, 1, [5]),
    ],
)
def test_per_second(num_frames, fps, max_frames, expected):
    assert per_second_indices(num_frames, fps, max_frames) == expected


@pytest.mark.parametrize(
    ("num_frames", "max_frames", "expected"),
    [
        (300, 8, [18, 55, 93, 130, 168, 205, 243, 280]),
        (301, 16, [8, 27, 46, 65, 84, 102, 121, 140, 159, 178, 196, 215, 234, 253, 272, 291]),
        (5, 8, [0, 1, 2, 3, 4, 4, 4, 4]),
        (1, 3, [0, 0, 0]),
        (9, 1, [4]),
    ],
)
def test_middle(num_frames, max_frames, expected):
    assert middle_indices(num_frames, max_frames) == expected


@settings(deadline=None, max_examples=200)
@given(NUM_FRAMES, FPS, MAX_FRAMES)
def test_per_second_is_ascending_without_repeats_and_as_long_as_it_can_be(num_frames, fps, max_frames):
    indices = per_second_indices(num_frames, fps, max_frames)
    step = max(round(fps), 1)
    assert indices == sorted(set(indices))
    assert all(0 <= index < num_frames and index % step == 0 for index in indices)
    assert len(indices) == min(max_frames, -(-num_frames // step))


@settings(deadline=None, max_examples=200)
@given(NUM_FRAMES, MAX_FRAMES)
def test_middle_is_ascending_and_always_full(num_frames, max_frames):
    indices = middle_indices(num_frames, max_frames)
    assert len(indices) == max_frames
    assert indices == sorted(indices)
    assert 0 <= indices[0] <= indices[-1] < num_frames
    assert len(set(indices)) == min(num_frames, max_frames)


def test_the_rule_chooses():
    assert VideoSampling(4).indices(100, 50.0) == [0, 50]
    assert VideoSampling(4, "middle").indices(100, 50.0) == [12, 37, 62, 87]
    assert VideoSampling() == VideoSampling(16, "per_second")


def test_a_video_of_no_frames_is_refused():
    with pytest.raises(ValueError, match="max_frames is 0; a video needs at least one frame"):
        VideoSampling(0)


def test_an_unknown_rule_is_refused():
    # In a process of its own: in this one the type checker of the tests would see it first.
    code = "from owl3_jax.processing.video_sampling import VideoSampling; VideoSampling(rule='best')"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "ValueError: the sampling rule is 'best'; it must be one of per_second, middle" in finished.stderr
