"""Damaged images and videos of all formats: nothing comes of them but a picture or one of two errors."""

import collections
import os
import re
import signal
import time

import numpy as np
import pytest
from media_fuzz import Outcome, Seed, Settings, image_seeds, replay, run, try_file, video_seeds
from media_fuzz.mutations import DAMAGES
from media_fuzz.run import damaged_file

from owl3_jax.processing.images import UnreadableImage
from owl3_jax.processing.video_file import CONTAINERS

IMAGES, VIDEOS = image_seeds(), video_seeds()
SEEDS = (*IMAGES, *VIDEOS)
SMALL = Settings(files=12, workers=2, seconds=2.0)


def test_whole_files_of_all_formats_are_read():
    read = {(file.kind, file.format) for file in SEEDS for way in range(4) if try_file(file, way).result == "read"}
    refused = {"EPS", "PALM", "PDF", "SPIDER"}  # a program, written only, written only, floating-point grey
    assert {name for kind, name in read if kind == "image"} == {file.format for file in IMAGES} - refused
    assert {name for kind, name in read if kind == "video"} >= set(CONTAINERS)
    assert len({file.format for file in IMAGES}) >= 24


def test_nothing_escapes_from_damaged_files(pytestconfig):
    report = run(SEEDS, Settings(files=pytestconfig.getoption("--fuzz-files")))
    assert report.faults == []
    assert report.files == pytestconfig.getoption("--fuzz-files")
    total = sum(report.counts.values(), collections.Counter())
    assert min(total["read"], total["refused"]) > report.files / 10  # the damage is neither nothing nor everything


def test_a_file_is_the_same_whenever_it_is_made():
    again = (*image_seeds(), *video_seeds())
    assert [file.content for file in again] == [file.content for file in SEEDS]
    files = [damaged_file(SEEDS, 5, index) for index in range(0, 2000, 41)]
    assert files == [damaged_file(again, 5, index) for index in range(0, 2000, 41)]
    assert len({file.content for file in files}) > 45
    assert files[3] != damaged_file(SEEDS, 6, 3 * 41)


def test_the_number_of_workers_does_not_matter():
    one, three = (run(SEEDS, Settings(files=150, workers=workers)) for workers in (1, 3))
    assert one.counts == three.counts


def hangs_at_five(file: Seed, way: int) -> Outcome:
    if file == damaged_file(SEEDS, 0, 5):
        time.sleep(100)
    return Outcome("read")


def crashes_at_five(file: Seed, way: int) -> Outcome:
    if file == damaged_file(SEEDS, 0, 5):
        os.kill(os.getpid(), signal.SIGSEGV)
    return Outcome("read")


@pytest.mark.parametrize(
    "trial, result, detail",
    [
        (hangs_at_five, "hung", "not finished after 2 s"),
        (crashes_at_five, "crashed", r"exit code -11\n(?s:.*)crashes_at_five"),
    ],
)
def test_a_hang_and_a_crash_cost_one_file(trial, result, detail):
    report = run(SEEDS, SMALL, trial=trial)
    assert [(fault.index, fault.outcome.result) for fault in report.faults] == [(5, result)]
    assert report.files == SMALL.files
    assert re.match(detail, report.faults[0].outcome.detail)


@pytest.mark.parametrize(
    "error, result",
    [
        (KeyError("no such frame"), "escaped"),
        (OSError("broken"), "escaped"),
        (UnreadableImage("cannot read image: broken"), "bad message"),
        (UnreadableImage("cannot read image damaged file 7: " + "x" * 500), "bad message"),
        (UnreadableImage("cannot read image damaged file 7: a\nb"), "bad message"),
        (UnreadableImage("cannot read image damaged file 7: broken"), "refused"),
    ],
)
def test_errors_are_judged(error, result, monkeypatch):
    def fail(*_):
        raise error

    monkeypatch.setattr("media_fuzz.trial.load_image", fail)
    file = Seed("image", "PNG", "RGB", ".png", IMAGES[0].content)
    assert try_file(file, 0).result == result


def test_a_file_is_replayed_in_this_process():
    index = 37
    file, outcome = replay(SEEDS, Settings(), index)
    assert file == damaged_file(SEEDS, 0, index)
    assert outcome == try_file(file, index // len(SEEDS))


def test_every_damage_changes_files():
    for damage in DAMAGES:
        damaged = []
        for seed in range(20):
            content = bytearray(np.random.default_rng(1).bytes(500))
            damage(content, [bytes(range(256))], np.random.default_rng(seed))
            damaged.append(bytes(content))
        assert len(set(damaged)) > 10, damage
