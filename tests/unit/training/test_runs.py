"""`owl3 runs`: what it reads of workdirs, what it says about the runs, and the page with their curves."""

import json
import math
import re

import numpy as np
import pytest

from owl3_jax.cli import main
from owl3_jax.training.runs import Curve, Life, RunsError, distinct_names, find_workdirs, read_curves, read_run, read_runs
from owl3_jax.training.runs_page import colours_for, render_page, smooth, thin
from owl3_jax.training.runs_summary import lost_steps, seconds_left, shares_by_kind, state_of, table_of

NOW = 1_800_000_000.0

# Steps 80 to 100 of the first process are lost, and 100 s lie between the two: 1000 s in all.
LIVES = [
    {
        "began": NOW - 1000,
        "updated": NOW - 500,
        "first_step": 0,
        "last_step": 100,
        "ended": None,
        "seconds": {"start": 20, "compile": 30, "step": 400, "data": 30, "save": 10, "evaluation": 10},
    },
    {
        "began": NOW - 400,
        "updated": NOW,
        "first_step": 80,
        "last_step": 130,
        "ended": None,
        "seconds": {"start": 20, "compile": 30, "step": 250, "data": 60, "save": 20, "evaluation": 20},
    },
]


def make_run(workdir, reports=(), lives=None, steps=200):
    """A workdir with these reports and lives; its name is that of the folder."""
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "config.json").write_text(json.dumps({"train": {"steps": steps}}))
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(report) + "\n" for report in reports))
    if lives is not None:
        (workdir / "accounts.json").write_text(json.dumps({"lives": lives}))
    return workdir


def state(workdir, now=NOW):
    return state_of(read_run(workdir, "run"), now)


def data_of(page):
    """What the page's script reads, which knows no NaN."""
    (found,) = re.findall(r'<script id="data" type="application/json">(.*?)</script>', page, re.DOTALL)
    return json.loads(found, parse_constant=pytest.fail)


def panels_of(page):
    return {panel["title"]: panel for group in data_of(page)["groups"] for panel in group["panels"]}


def test_a_run_that_compiles_may_be_silent_for_long(tmp_path):
    life = LIVES[-1] | {"ended": None, "updated": NOW, "doing": "compile"}
    workdir = make_run(tmp_path, [{"step": 1, "loss": 2.0}], lives=[life])
    assert [state(workdir, NOW + later).text.split(" since")[0] for later in (0, 3000, 4000)] == [
        "compiling",
        "compiling",
        "silent",
    ]


def test_curves_have_the_steps_of_their_own_reports(tmp_path):
    workdir = make_run(tmp_path, [{"step": 10, "loss": 2.0}, {"step": 10, "heldout/loss": 3.0}, {"step": 20, "loss": math.nan}])
    curves = read_run(workdir, "run").curves
    assert curves["loss"].steps.tolist() == [10, 20] and curves["heldout/loss"].steps.tolist() == [10]
    assert curves["loss"].values[0] == 2.0 and np.isnan(curves["loss"].values[1])


def test_an_incomplete_last_line_is_left_out_and_a_broken_one_before_is_named(tmp_path):
    file = make_run(tmp_path, [{"step": 1, "loss": 2.0}]) / "metrics.jsonl"
    with file.open("a") as lines:
        lines.write('{"step": 2, "lo')
    assert read_curves(file)["loss"].steps.tolist() == [1]
    with file.open("a") as lines:
        lines.write('\n{"step": 3, "loss": 1.0}\n')
    with pytest.raises(RunsError, match=rf"{re.escape(str(file))}, line 2: it is not JSON"):
        read_curves(file)


@pytest.mark.parametrize(
    ("line", "problem"),
    [("[1]", "must be an object"), ('{"loss": 1.0}', "step is null"), ('{"step": 2, "loss": "x"}', "loss is")],
)
def test_a_line_that_is_no_report_is_named(tmp_path, line, problem):
    file = make_run(tmp_path, [{"step": 1, "loss": 2.0}]) / "metrics.jsonl"
    file.write_text(f"{file.read_text()}{line}\n")
    with pytest.raises(RunsError, match=f"line 2: .*{problem}"):
        read_curves(file)


def test_a_damaged_accounts_file_is_named(tmp_path):
    workdir = make_run(tmp_path, lives=[LIVES[0] | {"seconds": {"step": "long"}}])
    with pytest.raises(RunsError, match=r'accounts.json: lives\[0\].seconds.step is "long"'):
        read_run(workdir, "run")


def test_workdirs_are_searched_below_a_folder_but_not_below_a_workdir(tmp_path):
    outer, inner = make_run(tmp_path / "digits"), make_run(tmp_path / "digits/few")
    deep = make_run(tmp_path / "a/b/c")
    (tmp_path / "official").mkdir()
    (tmp_path / "official/config.json").write_text("{}")  # a released checkpoint
    assert find_workdirs(tmp_path) == [outer, inner]
    assert find_workdirs(outer) == [outer] and find_workdirs(tmp_path / "a") == [deep]
    assert [run.workdir for run in read_runs([tmp_path, inner])] == [outer, inner]
    with pytest.raises(RunsError, match=r"no training run in .*official: .* a config.json beside a metrics.jsonl"):
        find_workdirs(tmp_path / "official")


def test_numbered_runs_are_in_the_order_of_their_numbers(tmp_path):
    runs = [make_run(tmp_path / name) for name in ("run-10", "run-9", "run-100b2", "run-100b10")]
    assert find_workdirs(tmp_path) == [runs[1], runs[0], runs[2], runs[3]]


def test_names_are_the_shortest_ends_that_differ(tmp_path):
    paths = [tmp_path / end for end in ("a/x/run", "b/x/run", "c/other", "c/run")]
    assert distinct_names(paths) == ["a/x/run", "b/x/run", "other", "c/run"]


def test_the_last_checkpoint_is_a_number(tmp_path):
    workdir = make_run(tmp_path)
    for name in ("50", "100", "best", "kept", "150.orbax-checkpoint-tmp-3"):
        (workdir / "checkpoints" / name).mkdir(parents=True)
    assert read_run(workdir, "run").checkpoint == 100


def test_states(tmp_path):
    assert state(make_run(tmp_path, [{"step": 200, "loss": 1.0}], LIVES)).kind == "finished"
    stopped = [LIVES[0] | {"ended": "stopped by SIGTERM"}]
    assert state(make_run(tmp_path, lives=stopped)) == ("stopped", "stopped by SIGTERM")
    assert state(make_run(tmp_path, lives=[*stopped, LIVES[1]])) == ("running", "running")
    assert state(make_run(tmp_path, lives=[LIVES[0] | {"ended": "error: disk full"}])) == ("failed", "error: disk full")


def test_a_run_is_silent_after_two_minutes_or_five_times_its_last_report(tmp_path):
    quick = [{"step": 10, "seconds/step": 6.0, "seconds/data": 4.0}]
    slow = [
        {"step": 10, "seconds/step": 1.0},
        {"step": 20, "seconds/step": 50.0, "seconds/data": 10.0},
        {"step": 20, "loss": 1.0},
    ]
    for reports, allowed in ((quick, 120), (slow, 300)):
        workdir = make_run(tmp_path, reports, LIVES)
        assert state(workdir, NOW + allowed - 1).kind == "running"
        assert state(workdir, NOW + allowed + 1).kind == "silent"
    assert state(workdir, NOW + 301).text.startswith("silent since 20")


def test_without_accounts_the_files_last_change_tells(tmp_path):
    workdir = make_run(tmp_path, [{"step": 10, "loss": 1.0}])
    changed = (workdir / "metrics.jsonl").stat().st_mtime
    assert state(workdir, changed + 100).kind == "running" and state(workdir, changed + 200).kind == "silent"
    assert shares_by_kind(read_run(workdir, "run").lives) == {}


def test_lost_steps_and_goodput_of_an_example_by_hand(tmp_path):
    lives = read_run(make_run(tmp_path, lives=LIVES), "run").lives
    assert lost_steps(lives) == [20, 0]
    shares = shares_by_kind(lives)
    # Lost: 20 of 100 steps, of 400 s. Goodput: 400 + 250 - 80 s of 1000.
    expected = {
        "step": 0.57,
        "compile": 0.06,
        "data": 0.09,
        "save": 0.03,
        "evaluation": 0.03,
        "start": 0.04,
        "lost": 0.08,
        "down": 0.1,
    }
    assert shares == pytest.approx(expected) and sum(shares.values()) == pytest.approx(1)


def test_shares_sum_to_one_when_a_process_does_not_account_for_all_its_time():
    life = Life(0.0, 100.0, 0, 10, None, {"step": 60.0, "data": 15.0})
    assert shares_by_kind([life]) == pytest.approx({"step": 0.6, "data": 0.15, "other": 0.25})


def test_steps_are_lost_to_any_later_process_and_once_only():
    spans = [(0, 100), (90, 120), (50, 130)]  # the checkpoint of step 90 could not be read by the last one
    lives = [Life(0.0, 1.0, first, last, None, {}) for first, last in spans]
    assert lost_steps(lives) == [50, 30, 0]


def test_the_time_left_is_that_of_the_last_reports(tmp_path):
    reports = [{"step": step, "seconds/step": 8.0, "seconds/evaluation": 2.0} for step in (10, 20, 30)]
    assert seconds_left(read_run(make_run(tmp_path, reports), "run")) == pytest.approx((200 - 30) * 1.0)
    assert seconds_left(read_run(make_run(tmp_path, [{"step": 10, "loss": 1.0}]), "run")) is None


def test_the_table_has_what_is_known_and_no_empty_column(tmp_path):
    reports = [
        {"step": 100, "loss": 2.0, "tokens_per_second": 12345.6},
        {"step": 100, "heldout/loss": 1.5, "eval/mmbench/accuracy": 61.25},
        {"step": 130, "loss": 1.75, "tokens_per_second": 12000.0, "heldout/loss": 1.625},
    ]
    make_run(tmp_path / "known", reports, LIVES), make_run(tmp_path / "new", lives=[])
    head, rows = table_of(read_runs([tmp_path]), NOW)
    first, second = (dict(zip(head, row, strict=True)) for row in rows)
    expected = {"run": "known", "step": "130/200", "loss": "1.7500", "held-out loss": "1.6250", "best (step)": "1.5000 (100)"}
    assert expected | {"mmbench/accuracy": "61.25", "tokens/s": "12,000", "goodput": "57.0 %"} == {
        name: cell for name, cell in first.items() if name != "state"
    }
    assert second["run"] == "new" and second["loss"] == "" and "checkpoint" not in head and "time left" not in head


def test_thinning_keeps_extremes_ends_and_order():
    values = np.random.default_rng(0).random(100_003)
    values[[12_345, 67_890, 99_999]] = 9.0, -9.0, np.nan
    thinned = thin(Curve(np.arange(len(values)), values), 2000)
    assert 1000 < len(thinned.steps) <= 2000 and (np.diff(thinned.steps) > 0).all()
    assert {0, 12_345, 67_890, 100_002} <= set(thinned.steps.tolist()) and np.isfinite(thinned.values).all()
    assert (thinned.values == values[thinned.steps]).all()


def test_a_mean_leaves_nan_where_it_is_and_constants_as_they_are():
    values = np.full(1000, 3.0)
    values[900:] = np.nan
    means = smooth(Curve(np.arange(1000), values))
    assert means is not None and np.allclose(means.values[:900], 3.0) and np.isnan(means.values[900:]).all()
    assert smooth(Curve(np.arange(5), values[:5])) is None


def test_a_page_has_the_curves_of_all_runs_in_colours_of_their_own(tmp_path):
    names = "loss", "accuracy", "learning_rate", "grad_norm", "loss/a.jsonl", "grad_norm/vision"
    reports = [{"step": step, **dict.fromkeys(names, 1 / step)} for step in range(1, 201)]
    make_run(tmp_path / "a", [*reports, {"step": 200, "heldout/loss": 0.5, "eval/mmbench/accuracy": 61.0}], LIVES)
    make_run(tmp_path / "b", [*reports[:50], {"step": 51, "loss": math.nan, "mfu": 0.4}])
    page = render_page(read_runs([tmp_path]), NOW)
    first, second = data_of(page)["runs"]
    assert first["resumed"] == [80] and second["resumed"] == [] and first["colour"] != second["colour"]
    panels = panels_of(page)
    assert [(line["run"], line["way"]) for line in panels["loss"]["lines"]] == [
        *((0, way) for way in ("thin", "line", "dots")),
        *((1, way) for way in ("thin", "line", "breaks")),
    ]
    assert panels["loss"]["lines"][-1] | {"values": []} == {"run": 1, "way": "breaks", "steps": [50], "values": []}
    assert panels["gradient norm"]["log"] and panels["vision"]["log"] and not panels["loss"]["log"]
    assert [line["run"] for line in panels["model FLOPs utilization"]["lines"]] == [1]
    assert {"mmbench/accuracy", "a.jsonl"} <= set(panels) and "skipped samples" not in panels
    assert "Data" not in [group["title"] for group in data_of(page)["groups"]]
    assert "goodput: 57.0 %" in page and not re.search(r"(src|href)=", page)


def test_a_page_of_long_runs_stays_small(tmp_path):
    steps, values = np.arange(100_000), np.random.default_rng(0).random(100_000)
    names = [f"{prefix}/{number}" for prefix in ("loss", "grad_norm", "update_norm") for number in range(4)]
    run = read_run(make_run(tmp_path), "run")._replace(curves={name: Curve(steps, values) for name in ("loss", *names)})
    runs = [run._replace(name=f"run {number}") for number in range(6)]
    page = render_page(runs, NOW)
    assert len(page) < 2e6
    alone = panels_of(render_page([run], NOW))
    assert {len(line["steps"]) > 1000 for line in alone["loss"]["lines"]} == {True}
    assert max(len(line["steps"]) for panel in alone.values() for line in panel["lines"]) <= 2000


def test_any_number_of_runs_has_different_colours():
    assert len(set(colours_for(30))) == 30


def test_the_command_prints_the_table_and_writes_the_page(tmp_path, capsys):
    make_run(tmp_path / "runs/mine", [{"step": 200, "loss": 1.0}], LIVES)
    main(["runs", str(tmp_path / "runs"), "--output", str(tmp_path / "page.html")])
    printed = capsys.readouterr().out
    assert re.search(r"^mine +finished +200/200 +1.0000", printed, re.MULTILINE) and "page.html" in printed
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")


def test_the_command_says_what_was_looked_for(tmp_path):
    with pytest.raises(SystemExit, match=r"error: no training run in .*metrics.jsonl"):
        main(["runs", str(tmp_path)])
