"""Figures of known requests equal those worked out by hand, in the table, the file and the picture too."""

import dataclasses
import json

import pytest
from PIL import Image

from owl3_jax.serving.bench.plot import save_plot
from owl3_jax.serving.bench.record import Record, Run
from owl3_jax.serving.bench.report import compare, describe, dump, make_report, round_ratios, summaries_of
from owl3_jax.serving.bench.runs import SEQUENTIAL, Measured
from owl3_jax.serving.bench.statistics import Limits, in_flight, summarise

NO_LIMITS = Limits()


def record(scheduled: float, *pieces: float, images: int = 1, **fields) -> Record:
    """A request that was sent in time, answered with the last piece, a token each."""
    known = {
        "conversation": 0,
        "turn": 0,
        "images": images,
        "is_shared": False,
        "scheduled": scheduled,
        "sent": scheduled,
        "ended": pieces[-1] if pieces else scheduled + 1,
        "pieces": pieces,
        "status": 200,
        "error": None,
        "message": "",
        "finish_reason": "stop",
        "prompt_tokens": 10,
        "cached_tokens": 0,
        "output_tokens": len(pieces),
    }
    return Record(**(known | fields))


FIRST = record(0.0, 1.0, 1.5, 2.5, images=4, cached_tokens=5)
LATE = record(1.0, 4.0, 4.25, sent=2.0, ended=5.0, images=2)
FOLLOW_UP = record(5.0, 5.5, 6.0, 6.5, 7.0, images=2, turn=1, output_tokens=7)
REFUSED = record(2.0, images=9, status=429, error="http_429", message="too many", ended=2.1)
BROKEN = record(2.0, 3.0, images=9, error="cut_off", message="no end", ended=9.0)
RUN = Run("3 at once", began=0.0, ended=10.0, records=[FIRST, LATE, FOLLOW_UP, REFUSED, BROKEN])


def test_latencies_of_a_request_count_from_its_schedule():
    assert (LATE.time_to_first, LATE.gaps, LATE.end_to_end) == (3.0, [0.25], 4.0)
    assert (FOLLOW_UP.time_per_token, FIRST.time_per_token, REFUSED.time_to_first) == (0.25, 0.75, None)


def test_one_token_has_no_time_per_token():
    assert record(0.0, 1.0).time_per_token is None


def test_a_load_is_summed_up_as_by_hand():
    summary = summarise([RUN], NO_LIMITS)
    assert (summary.requests, summary.answered, summary.errors) == (5, 3, {"http_429": 1, "cut_off": 1})
    assert (summary.output_tokens, summary.prompt_tokens, summary.cached_tokens, summary.images) == (12, 30, 5, 6)
    assert (summary.requests_per_s, summary.output_tokens_per_s, summary.images_per_s) == (0.3, 1.2, 0.6)
    # first tokens after 0.5, 1 and 3 s; gaps 0.25, 0.5, 0.5, 0.5, 0.5, 1
    for spread, figures in [
        (summary.time_to_first, (3, 1.5, 1.0, 2.6, 2.8, 2.96, 3.0)),
        (summary.gap, (6, 3.25 / 6, 0.5, 0.75, 0.875, 0.975, 1.0)),
        (summary.time_per_token, (3, 1.25 / 3, 0.25, 0.65, 0.7, 0.74, 0.75)),
        (summary.end_to_end, (3, 8.5 / 3, 2.5, 3.7, 3.85, 3.97, 4.0)),
    ]:
        assert spread is not None and dataclasses.astuple(spread) == pytest.approx(figures)
    assert summary.first_p99_over_p50 == pytest.approx(2.96)
    assert (summary.latest, summary.most_at_once, summary.good_per_s) == (1.0, 4, None)


def test_several_runs_count_as_one_of_their_joint_time():
    summary = summarise([RUN, Run("3 at once", began=20.0, ended=25.0, records=[record(20.0, 21.0)])], NO_LIMITS)
    assert (summary.seconds, summary.answered, summary.requests_per_s) == (15.0, 4, pytest.approx(4 / 15))


@pytest.mark.parametrize(
    ("limits", "good"),
    [
        (Limits(time_to_first=1.0), 2),
        (Limits(time_to_first=0.9), 1),
        (Limits(gap=0.25), 2),
        (Limits(time_to_first=1.0, gap=0.25), 1),
        (Limits(time_to_first=9.0, gap=9.0), 3),
    ],
)
def test_goodput_counts_answers_within_the_limits(limits, good):
    assert summarise([RUN], limits).good_per_s == good / 10


def test_an_answer_without_any_token_is_no_latency():
    summary = summarise([Run("1 at once", 0.0, 1.0, [record(0.0, ended=1.0)])], NO_LIMITS)
    assert (summary.answered, summary.time_to_first, summary.gap, summary.first_p99_over_p50) == (1, None, None, None)


def test_requests_in_flight_are_counted_over_time():
    assert in_flight([FIRST, LATE]) == [(0.0, 1), (2.0, 2), (2.5, 1), (5.0, 0)]
    assert in_flight([record(0.0, 1.0), record(1.0, 2.0)]) == [(0.0, 1), (1.0, 1), (2.0, 0)]


def test_two_loads_are_compared_by_their_rates():
    together = [
        Run("2 at once", began, began + 1, [record(began, began + 0.5, began + 1, images=3)] * 4) for began in (0.0, 9.0)
    ]
    alone = [Run(SEQUENTIAL, began, began + 2, [record(began, began + 0.5, began + 1, images=3)] * 2) for began in (2.0, 5.0)]
    measured = Measured(runs=[together[0], *alone, together[1]])
    assert compare(summaries_of(measured, NO_LIMITS)) == {
        "output_tokens_per_s": 4.0,
        "requests_per_s": 4.0,
        "images_per_s": 4.0,
    }
    assert round_ratios(measured) == [4.0, 4.0]
    assert "4.00 times the output tokens/s of one after the other (rounds: 4.00, 4.00)" in describe(measured, NO_LIMITS)


def test_one_load_is_compared_with_nothing():
    assert compare(summaries_of(Measured(runs=[RUN]), NO_LIMITS)) is None


TABLE = """\
                          3 at once
answered                     3 of 5
seconds                        10.0
requests/s                     0.30
output tokens/s                1.20
images/s                       0.60
images                            6
prompt tokens                    30
of them cached                  17%
output tokens                    12
most requests at once             4
sent late by at most, ms       1000
first token, p99/p50           2.96
goodput, requests/s            0.20

ms, 3 at once              mean   p50   p90   p95   p99  largest
time to first token        1500  1000  2600  2800  2960     3000
between pieces of text      542   500   750   875   975     1000
per token after the first   417   250   650   700   740      750
end to end                 2833  2500  3700  3850  3970     4000

3 at once: 1 x cut_off, such as: no end
3 at once: 1 x http_429, such as: too many"""


def test_the_table_says_all_of_it():
    assert "\n".join(describe(Measured(runs=[RUN]), Limits(time_to_first=1.0))) == TABLE


def test_requests_that_were_given_up_are_told():
    lines = describe(Measured(runs=[dataclasses.replace(RUN, under_way=2)]), NO_LIMITS)
    assert lines[-1] == "3 at once: 2 requests under way were given up"


def test_nothing_measured_is_told():
    assert describe(Measured(runs=[Run("3 at once", 0.0)]), NO_LIMITS) == ["no request has been answered"]


def test_the_report_holds_every_figure():
    measured = Measured("owl", [RUN], "before 1\n", "after 2\n")
    report = make_report(measured, NO_LIMITS, command=["owl3"], date="2026-01-01", settings={"seed": 0}, complete=True)
    read = json.loads(dump(report))
    assert {key: read[key] for key in ("command", "date", "settings", "model", "complete")} == {
        "command": ["owl3"],
        "date": "2026-01-01",
        "settings": {"seed": 0},
        "model": "owl",
        "complete": True,
    }
    assert (read["metrics_before"], read["metrics_after"]) == ("before 1\n", "after 2\n")
    assert read["host"]["processor"] and read["host"]["cores"] and read["versions"]["aiohttp"]
    assert read["summaries"][0]["time_to_first"]["p50"] == 1.0
    (run,) = read["runs"]
    assert [request["error"] for request in run["requests"]] == [None, None, None, "http_429", "cut_off"]
    fields = {field.name for field in dataclasses.fields(Record)}
    derived = {"time_to_first", "time_per_token", "end_to_end", "gaps", "gap_mean", "gap_p99"}
    assert all(set(request) == fields | derived for request in run["requests"])
    assert (run["requests"][0]["gaps"], run["requests"][0]["gap_mean"], run["requests"][0]["images"]) == ([0.5, 1.0], 0.75, 4)


@pytest.mark.parametrize(
    "runs",
    [
        [RUN],
        [RUN, Run(SEQUENTIAL, 10.0, 12.0, [record(10.0, 11.0, 11.0, 12.0)])],
        [Run("1 at once", 0.0, 3.0, [REFUSED])],
        [Run("1 at once", 0.0, 1.0, [record(0.0, 1.0)])],
    ],
    ids=["one load", "two loads", "no answer", "one token"],
)
def test_the_picture_is_written(tmp_path, runs):
    file = save_plot(tmp_path / "new" / "plot.png", Measured("owl", runs), r"a model may be named $\frac$")
    with Image.open(file) as picture:
        picture.load()
        assert picture.format == "PNG" and picture.width > 1000 and len(picture.getcolors(1 << 20)) > 50
