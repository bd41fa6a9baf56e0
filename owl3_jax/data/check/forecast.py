"""How many rows and steps an epoch has, by packing samples of the right sizes as training would."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import grain
import numpy as np

from owl3_jax.config import DataConfig
from owl3_jax.data.packing import first_fit

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
    """The forecast for one host.

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
    parts = [
        grain.MapDataset.source(list(each)).seed(config.seed + number).shuffle().repeat()
        for number, (each, _) in enumerate(filled.values())
    ]
    mixed = parts[0] if len(parts) == 1 else grain.MapDataset.mix(parts, weights=[weight for _, weight in filled.values()])
    packed_samples = min(total, _MOST)
    lengths = {"tokens": config.tokens_per_row, "images": config.images_per_row}
    # A thread would only interrupt: the work is short Python calls.
    samples = mixed[:packed_samples].to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    rows = list(_rows(first_fit(samples.map(_to_arrays), config, config.rows, lengths)))
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


def _to_arrays(size: tuple[int, int]) -> dict[str, np.ndarray]:
    tokens, images = size
    return {"tokens": np.ones(tokens, np.bool_), "images": np.ones(images, np.bool_)}


def _rows(packed: grain.IterDataset) -> Iterator[tuple[int, int]]:
    """Tokens and images of each row that has some."""
    for row in packed:
        tokens = int(np.sum(row["tokens"]))
        if tokens:
            yield tokens, int(np.sum(row["images"]))
