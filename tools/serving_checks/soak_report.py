"""What a soak has found, as a table and as JSON."""

from collections import Counter
from collections.abc import Iterator, Mapping

import numpy as np

from serving_checks.client import KILLED
from serving_checks.soak import Run

_SHOWN = 20  # problems


def wrong(run: Run) -> list[str]:
    """Everything that is wrong."""
    return [*run.problems, *(f"{outcome.kind}: {outcome.problem}" for outcome in run.outcomes if outcome.problem)]


def slope(run: Run) -> float:
    """MiB that the server grows by in 1000 requests: the line of least squares through the last half of the run."""
    late = [sample for sample in run.samples if sample.requests >= len(run.outcomes) / 2]
    requests = np.array([sample.requests for sample in late], np.float64)
    if len(late) < 2 or not np.ptp(requests):
        return float("nan")
    return float(1000 * np.polyfit(requests, [sample.resident_mib for sample in late], 1)[0])


def summary(run: Run) -> Mapping[str, object]:
    """For JSON."""
    kinds = Counter(outcome.kind for outcome in run.outcomes)
    statuses = Counter(outcome.status for outcome in run.outcomes)
    return {
        "requests": len(run.outcomes),
        "seconds": round(run.seconds, 1),
        "requests_per_second": round(len(run.outcomes) / run.seconds, 2),
        "kinds": dict(sorted(kinds.items())),
        "statuses": {str(status) if status else "left": count for status, count in sorted(statuses.items())},
        "workers_killed": run.kills,
        "requests_that_lost_their_worker": sum(outcome.code == KILLED for outcome in run.outcomes),
        "resident_mib": {name: round(value, 1) for name, value in _resident(run)},
        "resident_mib_per_1000_requests": round(slope(run), 3),
        "descriptors": {"most": max((sample.descriptors for sample in run.samples), default=0)},
        "cpu_seconds": {name: round(value, 1) for name, value in vars(run.cpu).items()},
        "wrong": wrong(run),
    }


def table(run: Run) -> str:
    """In Markdown."""
    rows = [*_kind_rows(run), "", *_fact_rows(run)]
    if problems := wrong(run):
        rows += ["", f"{len(problems)} things are wrong:", *(f"- {problem}" for problem in problems[:_SHOWN])]
    return "\n".join(rows)


def _kind_rows(run: Run) -> Iterator[str]:
    yield "| kind | requests | wrong | median s | 99 % within s |"
    yield "|---|---:|---:|---:|---:|"
    for kind in sorted({outcome.kind for outcome in run.outcomes}):
        mine = [outcome for outcome in run.outcomes if outcome.kind == kind]
        seconds = [outcome.seconds for outcome in mine]
        failed = sum(bool(outcome.problem) for outcome in mine)
        yield f"| {kind} | {len(mine)} | {failed} | {np.median(seconds):.2f} | {np.quantile(seconds, 0.99):.2f} |"


def _fact_rows(run: Run) -> Iterator[str]:
    found = summary(run)
    resident, cpu = dict(_resident(run)), run.cpu
    yield "| measured | |"
    yield "|---|---|"
    yield f"| requests | {found['requests']} in {run.seconds:.0f} s, {len(run.outcomes) / run.seconds:.1f} a second |"
    yield f"| statuses | {', '.join(f'{count} x {status}' for status, count in dict(_items(found['statuses'])).items())} |"
    yield f"| workers killed | {run.kills}, which cost {found['requests_that_lost_their_worker']} requests |"
    if run.samples:
        shown = ", ".join(f"{name} {value:.0f}" for name, value in resident.items())
        yield f"| resident memory, MiB | {shown} |"
        yield f"| its slope over the last half | {slope(run):+.2f} MiB per 1000 requests |"
        yield f"| descriptors | at most {max(sample.descriptors for sample in run.samples)} |"
    parts = f"event loop {cpu.event_loop:.0f}, engine and other threads {cpu.others:.0f}, decoders {cpu.workers:.0f}"
    yield f"| CPU seconds | {parts} |"


def _items(mapping: object) -> Iterator[tuple[str, int]]:
    assert isinstance(mapping, dict)
    yield from mapping.items()


def _resident(run: Run) -> Iterator[tuple[str, float]]:
    if run.samples:
        middle = min(run.samples, key=lambda sample: abs(sample.requests - len(run.outcomes) / 2))
        yield "start", run.samples[0].resident_mib
        yield "half-way", middle.resident_mib
        yield "end", run.samples[-1].resident_mib
        yield "most", max(sample.resident_mib for sample in run.samples)
        yield "workers at the end", run.samples[-1].workers_mib
