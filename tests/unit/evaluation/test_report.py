"""How numbers are shown, and what the files hold."""

import json

import pytest
from matplotlib.figure import Figure

from owl3_jax.evaluation.report import format_table, percent, rounded, with_interval, write_results
from owl3_jax.evaluation.samples import choose
from owl3_jax.evaluation.task import Summary
from tests.unit.evaluation.toys import EVAL, Counting


def test_blocks_of_all_tasks_and_their_figures_are_written(tmp_path):
    tasks = [Counting((1,), b"")]
    samples = choose(tasks, {("counting", "0"): "1"}, 1)
    shared = {"trained": [1, 2]}
    summaries = [
        Summary(shared | {"a": {"right": 1}}, "", {"a.png": Figure()}),
        Summary(shared | {"b": {"right": 2}}, "", {"b.png": Figure(), "c.png": Figure()}),
    ]
    paths = write_results(tmp_path, summaries, samples, EVAL, {"seconds": 1.0})
    assert [path.name for path in paths] == ["report.json", "a.png", "b.png", "c.png", "samples.png"]
    assert all(path.stat().st_size for path in paths)
    report = json.loads(paths[0].read_text())
    assert list(report) == ["settings", "trained", "a", "b", "samples", "run"]
    assert (report["trained"], report["b"], report["run"]) == ([1, 2], {"right": 2}, {"seconds": 1.0})
    (sample,) = report["samples"]
    assert sample == {
        "task": "counting",
        "images": ["grey"],
        "question": "How many?",
        "answer": "1",
        "expected": "1",
        "right": True,
    }


def test_without_samples_there_is_no_sheet(tmp_path):
    (path,) = write_results(tmp_path, [Summary({}, "", {})], [], EVAL, {})
    assert path.name == "report.json"


def test_floats_are_rounded_to_six_places():
    fields = {"name": "a", "share": 1 / 3, "interval": (1 / 3, 2 / 3), "count": 7}
    assert rounded(fields) == {"name": "a", "share": 0.333333, "interval": [0.333333, 0.666667], "count": 7}


@pytest.mark.parametrize(("share", "text"), [(0.0, "0.0 %"), (0.123, "12.3 %"), (1.0, "100.0 %"), (0.25**8, "0.002 %")])
def test_percent(share, text):
    assert percent(share) == text


def test_an_interval_follows_its_share():
    assert with_interval(0.5, (0.05, 0.95)) == "50.0 % [ 5.0,  95.0]"


def test_columns_are_aligned_on_the_right():
    assert format_table([["a", "bcd"], ["12", "3"]]) == [" a  bcd", "12    3"]
