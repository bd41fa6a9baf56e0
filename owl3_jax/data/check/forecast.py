"""How many rows and steps an epoch has, by packing samples of the right sizes as training would."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from owl3_jax.config import DataConfig, SourceConfig
from owl3_jax.data.lanes import Order, ahead_of, choose
from owl3_jax.data.pipeline import sample_order

_MOST = 20_000  # samples that are packed; what they fill is scaled up for more


@dataclasses.dataclass(frozen=True)
class Forecast:
    """What as many samples as the sources have usable records become."""

    samples: int
    rows: int
    steps: int
    token_fill: float  # share of the rows' tokens that samples fill
    image_fill: float
    samples_per_row: float
    epochs: Mapping[str, float]  # how often each source is read meanwhile


def forecast_epoch(
    sizes: Mapping[str, Sequence[tuple[int, int]]], weights: Sequence[float], config: DataConfig
) -> Forecast | None:
    """The forecast.

    Args:
        sizes: tokens and images of the usable records of each source.
        weights: the sources' shares of all samples (`owl3_jax.data.pipeline.mixture_weights`).
        config: the rows of a batch.

    Returns None when no record can be used.
    """
    filled = {path: (each, weight) for (path, each), weight in zip(sizes.items(), weights, strict=True) if each}
    if not filled:
        return None
    total = sum(len(each) for each, _ in filled.values())
    weight_sum = sum(weight for _, weight in filled.values())
    epochs = {path: weight / weight_sum * total / len(each) for path, (each, weight) in filled.items()}
    records = {SourceConfig(path, weight=weight): _Sizes(each) for path, (each, weight) in filled.items()}
    order = sample_order(records, config, lambda source: _as_it_is)
    packed_samples = min(total, _MOST)
    rows = list(_rows(order, config, packed_samples))
    count, (tokens, images) = len(rows), np.sum(rows, axis=0)
    scale = total / packed_samples
    return Forecast(
        samples=total,
        rows=round(count * scale),
        steps=-(-round(count * scale) // config.rows),
        token_fill=float(tokens / (count * config.tokens_per_row)),
        image_fill=float(images / (count * config.images_per_row)),
        samples_per_row=packed_samples / count,
        epochs=epochs,
    )


@dataclasses.dataclass(frozen=True)
class _Sizes:
    """Tokens and images of records, by their index."""

    sizes: Sequence[tuple[int, int]]

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> tuple[int, int]:
        return self.sizes[index]


def _as_it_is(size: tuple[int, int]) -> tuple[int, int]:
    return size


def _rows(order: Order, config: DataConfig, samples: int) -> Iterator[tuple[int, int]]:
    """Tokens and images of the rows that so many samples fill, lane by lane."""
    for lane in range(order.lanes):
        own = iter([order.samples[order.place(lane, number)] for number in range(-(-samples // order.lanes))])
        pending = list(itertools.islice(own, ahead_of(config)))
        while pending:
            room = tokens, images = config.tokens_per_row, config.images_per_row
            while (place := choose(pending, (tokens, images), is_empty=(tokens, images) == room)) is not None:
                size = pending.pop(place)
                pending += itertools.islice(own, 1)
                tokens, images = tokens - size[0], images - size[1]
                if not (config.pack and pending):
                    break
            yield room[0] - tokens, room[1] - images
