"""What a measurement is told as: a table on the terminal, and a JSON file with every figure."""

import dataclasses
import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping, Sequence

import aiohttp

from owl3_jax.host.processor import processor_name
from owl3_jax.host.text_table import format_table
from owl3_jax.serving.bench.record import Record, Run
from owl3_jax.serving.bench.runs import SEQUENTIAL, Measured
from owl3_jax.serving.bench.statistics import Limits, Spread, Summary, summarise, token_rate

_RATES = ("output_tokens_per_s", "requests_per_s", "images_per_s")


def summaries_of(measured: Measured, limits: Limits) -> list[Summary]:
    """Of each load that has any record, the first one first."""
    return [summarise(runs, limits) for runs in measured.by_name() if any(run.records for run in runs)]


def describe(measured: Measured, limits: Limits) -> list[str]:
    """The lines that are printed."""
    summaries = summaries_of(measured, limits)
    if not summaries:
        return ["no request has been answered"]
    lines = [*_overview(summaries), ""]
    for summary in summaries:
        lines += [*_latencies(summary), ""]
    lines += [line for runs in measured.by_name() for line in _errors(runs)]
    if ratios := compare(summaries):
        rounds = ", ".join(f"{ratio:.2f}" for ratio in round_ratios(measured))
        lines.append(f"{ratios['output_tokens_per_s']:.2f} times the output tokens/s of {SEQUENTIAL} (rounds: {rounds})")
    return lines if lines[-1] else lines[:-1]


def compare(summaries: Sequence[Summary]) -> dict[str, float] | None:
    """The rates of the load over those of the same load one after the other; None where one of them is missing or zero."""
    by_name = {summary.name == SEQUENTIAL: dataclasses.asdict(summary) for summary in summaries}
    if len(by_name) < 2 or not by_name[True]["output_tokens_per_s"]:
        return None
    return {rate: by_name[False][rate] / by_name[True][rate] for rate in _RATES if by_name[True][rate]}


def round_ratios(measured: Measured) -> list[float]:
    """The output tokens/s of the load over those of the same load one after the other, in each round."""
    together = [token_rate(run) for run in measured.runs if run.name != SEQUENTIAL]
    sequential = [token_rate(run) for run in measured.runs if run.name == SEQUENTIAL]
    return [one / other for one, other in zip(together, sequential, strict=False) if other]


def make_report(
    measured: Measured, limits: Limits, *, command: Sequence[str], date: str, settings: Mapping[str, object], complete: bool
) -> dict[str, object]:
    """Everything, as JSON can hold it; times in seconds since the measurement began.

    Args:
        measured: what there is.
        limits: of goodput.
        command: the command line, without secrets.
        date: when it began, as ISO 8601.
        settings: of the load, in full.
        complete: whether the measurement came to its end.
    """
    summaries = summaries_of(measured, limits)
    return {
        "command": list(command),
        "date": date,
        "model": measured.model,
        "settings": dict(settings),
        "host": {"processor": processor_name(), "cores": os.cpu_count(), "platform": platform.platform()},
        "versions": {
            "owl3_jax": importlib.metadata.version("owl3_jax"),
            "python": platform.python_version(),
            "aiohttp": aiohttp.__version__,
        },
        "complete": complete,
        "summaries": [dataclasses.asdict(summary) for summary in summaries],
        "ratios": compare(summaries),
        "round_ratios": round_ratios(measured),
        "runs": [_run(run) for run in measured.runs],
        "metrics_before": measured.metrics_before,
        "metrics_after": measured.metrics_after,
    }


def dump(report: Mapping[str, object]) -> str:
    """The report as text."""
    return json.dumps(report, indent=1, allow_nan=False) + "\n"


def _run(run: Run) -> dict[str, object]:
    return {"name": run.name, "began": run.began, "ended": run.ended, "requests": [_record(record) for record in run.records]}


def _record(record: Record) -> dict[str, object]:
    gaps = Spread.of(record.gaps)
    return dataclasses.asdict(record) | {
        "time_to_first": record.time_to_first,
        "time_per_token": record.time_per_token,
        "end_to_end": record.end_to_end,
        "gaps": record.gaps,
        "gap_mean": gaps.mean if gaps else None,
        "gap_p99": gaps.p99 if gaps else None,
    }


def _overview(summaries: Sequence[Summary]) -> list[str]:
    rows = [("", *(summary.name for summary in summaries))]
    rows += [(label, *(cell(summary) for summary in summaries)) for label, cell in _OVERVIEW.items()]
    if any(summary.good_per_s is not None for summary in summaries):
        rows.append(("goodput, requests/s", *(_number(summary.good_per_s) for summary in summaries)))
    return format_table(rows)


_OVERVIEW = {
    "answered": lambda summary: f"{summary.answered} of {summary.requests}",
    "seconds": lambda summary: f"{summary.seconds:.1f}",
    "requests/s": lambda summary: _number(summary.requests_per_s),
    "output tokens/s": lambda summary: _number(summary.output_tokens_per_s),
    "images/s": lambda summary: _number(summary.images_per_s),
    "images": lambda summary: str(summary.images),
    "prompt tokens": lambda summary: str(summary.prompt_tokens),
    "of them cached": lambda summary: _share(summary.cached_tokens, summary.prompt_tokens),
    "output tokens": lambda summary: str(summary.output_tokens),
    "most requests at once": lambda summary: str(summary.most_at_once),
    "sent late by at most, ms": lambda summary: _ms(summary.latest),
    "first token, p99/p50": lambda summary: _number(summary.first_p99_over_p50),
}


def _latencies(summary: Summary) -> list[str]:
    spreads = {
        "time to first token": summary.time_to_first,
        "between pieces of text": summary.gap,
        "per token after the first": summary.time_per_token,
        "end to end": summary.end_to_end,
    }
    columns = ("mean", "p50", "p90", "p95", "p99", "largest")
    rows = [
        [label, *(_ms(getattr(spread, column)) if spread else "-" for column in columns)] for label, spread in spreads.items()
    ]
    return format_table([[f"ms, {summary.name}", *columns], *rows])


def _errors(runs: Sequence[Run]) -> list[str]:
    """How many requests failed in each way, with one message of each."""
    failures = [record for run in runs for record in run.failures]
    examples = {record.error: record.message for record in reversed(failures)}
    counts = {kind: sum(record.error == kind for record in failures) for kind in sorted(map(str, examples))}
    lines = [f"{runs[0].name}: {count} x {kind}, such as: {examples[kind]}" for kind, count in counts.items()]
    given_up = sum(run.under_way for run in runs)
    return [*lines, f"{runs[0].name}: {given_up} requests under way were given up"] if given_up else lines


def _number(value: float | None) -> str:
    """Three digits or more."""
    if value is None:
        return "-"
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _ms(seconds: float) -> str:
    return _number(seconds * 1000)


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else "-"
