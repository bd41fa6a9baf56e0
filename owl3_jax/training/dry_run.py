"""What a run would do, without taking a step: `owl3 train --dry_run`."""

import contextlib
import dataclasses
import itertools
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh

from owl3_jax import sharding
from owl3_jax.batch import Batch
from owl3_jax.config import Config, DataConfig
from owl3_jax.convert.stored import open_parameters
from owl3_jax.data.cards import Card, pieces_of, render
from owl3_jax.formats.bundled import find_checkpoint
from owl3_jax.host.files import write_text
from owl3_jax.params import count_params
from owl3_jax.processing.processor import Processor
from owl3_jax.training.frozen import DTypes, split_params, trained_paths
from owl3_jax.training.loop import make_iterator, prepare_data
from owl3_jax.training.lora import abstract_run_params
from owl3_jax.training.processor import make_processor
from owl3_jax.training.start import resolve_start
from owl3_jax.training.step import NO_DTYPES, TrainState, abstract_state, example_batch, make_train_step

FIRST_BATCH = "first_batch.html"

_BATCHES_READ = 4  # for the numbers of an average step
_MOST_CARDS = 48
_PARAMETERS_SHOWN = 20  # parameters whose sharding is printed; sharding.txt of a run has all


def dry_run(config: Config, workdir: Path) -> Iterator[str]:
    """Lines on shapes, shardings, memory and data of a run, as they become known.

    The train step is compiled and a few batches are read; no parameter is. All that is written is a page with the first
    batch, to `workdir`.

    Raises what `owl3_jax.training.loop.train` does before its first step.
    """
    mesh, config = sharding.make_mesh(config.mesh), resolve_start(config)
    processor = make_processor(config)
    state = abstract_state(config, mesh, _dtypes_at_start(config))
    yield from _describe_devices(mesh)
    yield from _describe_parameters(config, mesh, state)
    yield from _describe_memory(config, mesh, state)
    yield from _describe_data(config, mesh, processor, workdir)


def _dtypes_at_start(config: Config) -> DTypes:
    """The dtypes of frozen parameters that keep those of the checkpoint that the run starts from."""
    if config.start.checkpoint is None or config.train.frozen_dtype is not None:
        return NO_DTYPES
    stored = open_parameters(find_checkpoint(config.start.checkpoint), config.model)
    return {path: parameter.dtype for path, parameter in stored.items()}


def _describe_devices(mesh: Mesh) -> Iterator[str]:
    device = mesh.devices.flat[0]
    yield f"devices: {mesh.size} {device.platform} ({device.device_kind}), mesh {sharding.describe_mesh(mesh)}"


def _describe_parameters(config: Config, mesh: Mesh, state: TrainState) -> Iterator[str]:
    trained = trained_paths(config)
    count = count_params(split_params(state.params, trained)[0])
    yield f"parameters: {count_params(state.params):,}, of which {count:,} are trained"
    leaves = flatten_dict(state.params, sep="/")
    lines = dict(zip(leaves, sharding.describe(abstract_run_params(config), mesh), strict=True))
    largest = sorted(leaves, key=lambda path: -math.prod(leaves[path].shape))[:_PARAMETERS_SHOWN]
    for path in (path for path in leaves if path in largest):
        yield f"  {leaves[path].dtype.name:8} {'trained' if path in trained else 'frozen '}  {lines[path]}"
    if len(leaves) > _PARAMETERS_SHOWN:
        yield f"  and {len(leaves) - _PARAMETERS_SHOWN} smaller ones"


def _describe_memory(config: Config, mesh: Mesh, state: TrainState) -> Iterator[str]:
    batch = example_batch(config)
    yield "batch, over all hosts:"
    for name, array in batch._asdict().items():
        if array is None:
            continue
        yield f"  {array.dtype.name:8} {name:17} {'x'.join(map(str, array.shape)):24} {sharding.batch_sharding(mesh).spec}"
    placed = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding.batch_sharding(mesh)), batch)
    held = {"parameters": state.params, "optimizer": state.opt_state, "batch": placed}
    sizes = ", ".join(f"{name} {sharding.device_bytes(tree) / 1e6:,.1f} MB" for name, tree in held.items())
    yield f"memory on each device: {sizes}"
    began = time.monotonic()
    memory = make_train_step(config, mesh).lower(state, batch).compile().memory_analysis()
    seconds = time.monotonic() - began
    peak = f"{memory.peak_memory_in_bytes / 1e6:,.1f} MB on each device at its peak" if memory else "unknown memory"
    yield f"the train step, compiled in {seconds:.1f} s, needs {peak}, its arguments among them"


def _describe_data(config: Config, mesh: Mesh, processor: Processor, workdir: Path) -> Iterator[str]:
    prepare_data(config)
    began = time.monotonic()
    with contextlib.closing(make_iterator(config, mesh, processor)) as iterator:
        batches = list(itertools.islice(iterator, _BATCHES_READ))
        skipped_samples, sizes = iterator.skips(), iterator.sizes
    seconds = time.monotonic() - began
    hosts = config.data.rows // len(batches[0].tokens)
    step = _Step.of(batches, hosts)
    yield step.describe(config.data)
    for (source, kind), skipped in skipped_samples.items():
        yield f"skipped among the first: {skipped} of {source} ({kind})"
    records = round(hosts * sum(sizes.values()))
    steps = records / step.samples
    yield (
        f"an epoch: {records:,} records, about {steps:,.1f} steps; the run's {config.train.steps:,} steps are "
        f"{config.train.steps / steps:,.1f} epochs (`owl3 data check` counts exactly)"
    )
    rate = sum(int((batch.image_segment_ids != 0).sum()) for batch in batches) / seconds
    workers = f"{config.data.workers} worker processes" if config.data.workers else "one thread"
    yield f"reading: {seconds:.1f} s for {len(batches)} batches, {rate:,.0f} images/s by {workers}"
    page = workdir / FIRST_BATCH
    summary, cards = step.describe(config.data).capitalize() + ".", list(_cards(batches[0], processor))
    write_text(page, render("training/first_batch.html", summary=summary, cards=cards))
    yield f"the first batch, as the model sees it: {page}"
    yield "no step was taken"


@dataclasses.dataclass(frozen=True)
class _Step:
    """Means over a few batches, of all hosts."""

    samples: float
    tokens: float
    targets: float
    images: float

    @classmethod
    def of(cls, batches: Sequence[Batch], hosts: int) -> "_Step":
        mean = lambda count: hosts * float(np.mean([count(batch) for batch in batches]))
        return cls(
            samples=mean(lambda batch: batch.segment_ids.max(axis=1).sum()),
            tokens=mean(lambda batch: (batch.segment_ids != 0).sum()),
            targets=mean(lambda batch: (batch.loss_weights != 0).sum()),
            images=mean(lambda batch: (batch.image_segment_ids != 0).sum()),
        )

    def describe(self, data: DataConfig) -> str:
        tokens, images = data.rows * data.tokens_per_row, data.rows * data.images_per_row
        return (
            f"a step: {self.samples:,.1f} samples with {self.tokens:,.0f} tokens ({self.tokens / tokens:.0%} of {tokens:,}), "
            f"{self.targets:,.0f} of them with loss, and {self.images:,.0f} images ({self.images / images:.0%} of {images:,})"
        )


def _cards(batch: Batch, processor: Processor) -> Iterator[Card]:
    """One for each sample of the batch."""
    places = [(row, segment) for row, last in enumerate(batch.segment_ids.max(axis=1)) for segment in range(1, int(last) + 1)]
    for row, segment in places[:_MOST_CARDS]:
        text, images = batch.segment_ids[row] == segment, batch.image_segment_ids[row] == segment
        tokens, labels = batch.tokens[row][text], batch.loss_weights[row][text] != 0
        size = f"{len(tokens)} tokens, {int(images.sum())} images, {int(labels.sum())} tokens with loss"
        pieces = list(pieces_of(tokens, labels, batch.pixels[row][images], processor.tokenizer))
        yield Card(f"row {row}, sample {segment}", [], size, pieces)
