"""Packing of samples into rows by grain, and the batch form made from its result.

grain's first-fit packer fills all rows of a batch at the same time: a sample goes into the first row that has room for its
tokens and its images; when no row has, the batch is complete. It numbers the samples of a row from 1 and their tokens from 0,
as the batch form does. With one sample a row at most, the same packer pads.
"""

import functools
from collections.abc import Mapping, Sequence

import grain
import numpy as np
from jaxtyping import Shaped

from owl3_jax.batch import Batch
from owl3_jax.config import DataConfig
from owl3_jax.data.samples import Loaded

Fields = dict[str, Shaped[np.ndarray, "..."]]


def pack_samples(samples: grain.IterDataset, config: DataConfig, rows: int) -> grain.IterDataset:
    """Batches of `rows` rows from samples, packed or padded as `config.pack` says.

    Every sample must fit into an empty row.
    """
    tokens, images = config.tokens_per_row, config.images_per_row
    lengths = {"tokens": tokens, "loss_weights": tokens, "pixels": images, "image_positions": images}
    numbers = {source.label: number for number, source in enumerate(config.sources)} if len(config.sources) > 1 else {}
    lengths |= {"source_ids": tokens} if numbers else {}
    packed = first_fit(samples.map(functools.partial(_to_fields, numbers=numbers)), config, rows, lengths)
    return packed.batch(rows, drop_remainder=True, batch_fn=_join_rows).map(_to_batch)


def first_fit(samples: grain.IterDataset, config: DataConfig, rows: int, lengths: Mapping[str, int]) -> grain.IterDataset:
    """Rows of samples, which are arrays by name; `lengths` says how long a row's array of each name is."""
    return grain.experimental.FirstFitPackIterDataset(
        samples,
        length_struct=dict(lengths),
        num_packing_bins=rows,
        max_sequences_per_bin=None if config.pack else 1,
        shuffle_bins=False,
    )


def _to_fields(loaded: Loaded, numbers: Mapping[str, int]) -> Fields:
    """`numbers` are those of the sources, if there are several."""
    sample = loaded.sample
    ids = {"source_ids": np.full(len(sample.input_ids), numbers[loaded.source], np.int32)} if numbers else {}
    return ids | {
        "tokens": sample.input_ids,
        "loss_weights": sample.labels.astype(np.float32) * np.float32(loaded.loss_weight),
        "pixels": sample.pixel_values,
        "image_positions": sample.image_starts,
    }


def _join_rows(rows: Sequence[Fields]) -> Fields:
    """The rows as arrays with one more dim, which are not copied where the packer has filled them as one array."""
    return {name: _stack([row[name] for row in rows]) for name in rows[0]}


def _stack(rows: Sequence[Shaped[np.ndarray, "..."]]) -> Shaped[np.ndarray, "rows ..."]:
    whole = rows[0].base
    if whole is None or whole.shape != (len(rows), *rows[0].shape):
        return np.stack(rows)
    address = lambda array: array.__array_interface__["data"]
    in_order = all(address(row) == address(whole[number]) for number, row in enumerate(rows))
    return whole if in_order else np.stack(rows)


def _to_batch(packed: Fields) -> Batch:
    return Batch(
        tokens=packed["tokens"],
        positions=packed["tokens_positions"],
        segment_ids=packed["tokens_segment_ids"],
        pixels=packed["pixels"],
        image_positions=packed["image_positions"],
        image_segment_ids=packed["pixels_segment_ids"],
        loss_weights=packed["loss_weights"],
        source_ids=packed.get("source_ids"),
    )
