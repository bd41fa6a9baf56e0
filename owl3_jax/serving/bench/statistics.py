"""What the figures of many requests say together."""

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from owl3_jax.serving.bench.record import Record, Run


@dataclasses.dataclass(frozen=True)
class Spread:
    """Mean and percentiles of a quantity; percentiles are interpolated between the two nearest values."""

    count: int
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    largest: float

    @classmethod
    def of(cls, values: Iterable[float | None]) -> "Spread | None":
        """That of the values that are known; None if none is."""
        known = np.array([value for value in values if value is not None], np.float64)
        if not known.size:
            return None
        p50, p90, p95, p99 = map(float, np.percentile(known, (50, 90, 95, 99)))
        return cls(known.size, float(known.mean()), p50, p90, p95, p99, float(known.max()))


@dataclasses.dataclass(frozen=True)
class Limits:
    """What users bear, in seconds; None: anything."""

    time_to_first: float | None = None
    gap: float | None = None  # between tokens, the mean of an answer

    @property
    def is_set(self) -> bool:
        """Whether there is any."""
        return self.time_to_first is not None or self.gap is not None

    def are_kept_by(self, record: Record) -> bool:
        """Whether a request was answered, within them."""
        return not (
            record.error
            or _exceeds(record.time_to_first, self.time_to_first)
            or _exceeds(record.time_per_token, self.gap)  # of fewer than two tokens there is no gap
        )


@dataclasses.dataclass(frozen=True)
class Summary:
    """Figures of a load. Latencies in seconds, of answered requests; rates in a second, over the load's whole time."""

    name: str
    requests: int
    answered: int
    errors: Mapping[str, int]  # failed requests of each kind
    given_up: int  # under way when the load was interrupted
    seconds: float
    requests_per_s: float
    output_tokens_per_s: float
    images_per_s: float  # those that a conversation shows for the first time
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    images: int
    time_to_first: Spread | None
    gap: Spread | None  # between pieces of text, over all gaps of all answers
    time_per_token: Spread | None  # after the first one
    end_to_end: Spread | None
    first_p99_over_p50: float | None
    most_at_once: int
    latest: float  # most seconds by which a request was sent after its schedule
    good_per_s: float | None  # requests answered within the limits; None without limits


def summarise(runs: Sequence[Run], limits: Limits) -> Summary:
    """The figures of runs of the same load, as of one."""
    records = [record for run in runs for record in run.records]
    answered = [record for record in records if not record.error]
    seconds = sum(run.seconds for run in runs)
    per_second = lambda count: count / seconds if seconds else 0.0
    first = Spread.of(record.time_to_first for record in answered)
    output_tokens, images = sum(record.output_tokens or 0 for record in answered), sum(record.new_images for record in answered)
    return Summary(
        name=runs[0].name,
        requests=len(records),
        answered=len(answered),
        errors=dict(collections.Counter(record.error for record in records if record.error)),
        given_up=sum(run.under_way for run in runs),
        seconds=seconds,
        requests_per_s=per_second(len(answered)),
        output_tokens_per_s=per_second(output_tokens),
        images_per_s=per_second(images),
        prompt_tokens=sum(record.prompt_tokens or 0 for record in answered),
        cached_tokens=sum(record.cached_tokens or 0 for record in answered),
        output_tokens=output_tokens,
        images=images,
        time_to_first=first,
        gap=Spread.of(gap for record in answered for gap in record.gaps),
        time_per_token=Spread.of(record.time_per_token for record in answered),
        end_to_end=Spread.of(record.end_to_end for record in answered),
        first_p99_over_p50=first.p99 / first.p50 if first and first.p50 else None,
        most_at_once=max((count for _, count in in_flight(records)), default=0),
        latest=max((record.sent - record.scheduled for record in records), default=0.0),
        good_per_s=per_second(sum(map(limits.are_kept_by, records))) if limits.is_set else None,
    )


def token_rate(run: Run) -> float:
    """Output tokens of answered requests in a second; 0 for a run of no time."""
    tokens = sum(record.output_tokens or 0 for record in run.records if not record.error)
    return tokens / run.seconds if run.seconds else 0.0


def in_flight(records: Iterable[Record]) -> list[tuple[float, int]]:
    """How many requests had been sent and not ended, from each time at which that changed."""
    changes = collections.Counter[float]()
    for record in records:
        changes[record.sent] += 1
        changes[record.ended] -= 1
    times = sorted(changes)
    return list(zip(times, np.cumsum([changes[time] for time in times]).tolist(), strict=True))


def _exceeds(value: float | None, limit: float | None) -> bool:
    return value is not None and limit is not None and value > limit
