"""Two runs side by side: numbers by hand, and the command."""

import json
import math
from pathlib import Path

import pytest

from owl3_jax.cli.compare import main
from owl3_jax.evaluation.comparison import changed, compare, pair_up
from owl3_jax.evaluation.question import Answered, Judged, Question
from owl3_jax.evaluation.samples import Sample, SamplesError, write_samples


def samples(*shares: float, task: str = "made", groups: tuple[str, ...] = ()) -> list[Sample]:
    return [
        Sample(
            task,
            Answered(Question(str(n), "Which?", "A", group=groups[n] if groups else ""), f"said {share}", Judged(share, share)),
            [],
            None,
        )
        for n, share in enumerate(shares)
    ]


def test_numbers_by_hand():
    first, second = samples(1, 1, 0, 0, 0, 0.3), samples(1, 0, 1, 1, 1, 0.6)
    (found,) = compare(pair_up(first, second))
    assert (found.questions, found.gained, found.lost) == (6, 3, 1)
    assert found.first == pytest.approx(100 * 2.3 / 6) and found.second == pytest.approx(100 * 4.6 / 6)
    assert found.difference == pytest.approx(100 * 2.3 / 6) and found.low < found.difference < found.high
    # Four questions differ, one of them the other way: two-sided 2 (C(4,0) + C(4,1)) / 16.
    assert found.p_value == pytest.approx(2 * (1 + 4) / 16)
    assert [pair.first.question.id for pair in changed(pair_up(first, second))] == ["1", "5", "2", "3", "4"]


def test_groups_count_once():
    groups = ("a", "a", "b", "b")
    (found,) = compare(pair_up(samples(1, 1, 1, 0, groups=groups), samples(1, 0, 1, 1, groups=groups)))
    assert (found.questions, found.first, found.second, found.gained, found.lost) == (2, 50, 50, 1, 1)


def test_equal_runs_differ_in_nothing():
    (found,) = compare(pair_up(samples(1, 0), samples(1, 0)))
    assert (found.difference, found.low, found.high, found.p_value) == (0, 0, 0, 1)


def test_the_interval_is_that_of_a_mean():
    first, second = samples(*[0.0] * 400), samples(*[0.0, 1.0] * 200)
    (found,) = compare(pair_up(first, second))
    margin = 1.96 * math.sqrt(0.25 / 400) * 100
    assert found.low == pytest.approx(50 - margin, abs=0.7) and found.high == pytest.approx(50 + margin, abs=0.7)


def test_runs_on_other_questions_are_an_error():
    with pytest.raises(SamplesError, match="no question in common: one has made, the other other"):
        pair_up(samples(1), samples(1, task="other"))
    other = samples(1)[0]
    changed_text = other._replace(answered=other.answered._replace(question=Question("0", "Another?", "A")))
    with pytest.raises(SamplesError, match="question 0 of made is not the same in both runs"):
        pair_up(samples(1), [changed_text])


def test_the_command_prints_and_writes_a_page(tmp_path, capsys):
    write_samples(tmp_path / "a", samples(1, 0, 0))
    write_samples(tmp_path / "b", samples(0, 1, 0))
    main([str(tmp_path / "a"), str(tmp_path / "b"), "--html", str(tmp_path / "page.html")])
    printed = capsys.readouterr().out
    assert "2 of 3 samples have another score, for example:" in printed and "'said 1' -> 'said 0'; right: A" in printed
    page = (tmp_path / "page.html").read_text()
    assert page.count("said 1") == 2 and 'class="wrong">said 0' in page


@pytest.mark.parametrize("content", [None, "{", json.dumps({"task": "made"})])
def test_a_folder_without_samples_is_an_error(tmp_path, content):
    folder = Path(tmp_path / "a")
    folder.mkdir()
    if content is not None:
        (folder / "samples.jsonl").write_text(content)
    with pytest.raises(SystemExit, match=r"error: (there is no|line 1 of) .*samples\.jsonl"):
        main([str(folder), str(folder)])
