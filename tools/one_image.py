"""Walks one image from its file to logits and prints what each step makes of it.

    python tools/one_image.py --config configs/digits.py --image docs/images/red_seven.png --prompt "Which digit is red?"

Parameters are random and only shapes are computed, so that the released sizes can be walked on a laptop too.
docs/one_image.md shows this output.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from owl3_jax.batch import Batch
from owl3_jax.config import Config
from owl3_jax.host import command_line
from owl3_jax.models.owl3 import Owl3
from owl3_jax.models.siglip import normalize_pixels
from owl3_jax.processing.batch import pad_batch
from owl3_jax.processing.chat import IMAGE
from owl3_jax.processing.images import load_image, squash
from owl3_jax.processing.processor import Sample
from owl3_jax.training.processor import make_processor


@dataclasses.dataclass(frozen=True)
class Flags:
    """Walks one image from its file to logits and prints what each step makes of it."""

    image: Path  # the image file
    prompt: str  # what to ask about it


def main() -> None:
    """Reads the command line and prints the walk."""
    config, flags = command_line.parse(Flags)
    image = load_image(flags.image, flags.image.name)
    processor = make_processor(config)
    sample = processor([{"role": "user", "content": f"{IMAGE}\n{flags.prompt}"}], [image])
    batch = pad_batch(
        [sample],
        tokens_per_row=len(sample.input_ids),
        images_per_row=len(sample.image_starts),
        image_size=config.model.vision.image_size,
    )
    for steps in (file_to_sample(image, sample, config), batch_arrays(batch), model_arrays(config, batch)):
        for name, dims, value in steps:
            print(f"{name:<28}{dims:<14}{describe(value)}")
        print()


def file_to_sample(image: Image.Image, sample: Sample, config: Config) -> Iterator[tuple[str, str, Any]]:
    """From the file to what the processor returns."""
    yield "file", "W x H", image
    yield "squash", "S S 3", squash(image, config.model.vision.image_size)
    yield "input_ids", "T", sample.input_ids
    yield "image_starts", "I", sample.image_starts
    yield "pixel_values", "I S S 3", sample.pixel_values


def batch_arrays(batch: Batch) -> Iterator[tuple[str, str, Any]]:
    """The batch form."""
    yield "tokens", "B T", batch.tokens
    yield "positions", "B T", batch.positions
    yield "segment_ids", "B T", batch.segment_ids
    yield "pixels", "B I S S 3", batch.pixels
    yield "image_positions", "B I", batch.image_positions
    yield "image_segment_ids", "B I", batch.image_segment_ids


def model_arrays(config: Config, batch: Batch) -> Iterator[tuple[str, str, Any]]:
    """The model, from top to bottom of the paper's figure; shapes only."""
    model = Owl3(config.model, config.compute, collect_hidden_states=True)
    params = jax.eval_shape(model.init, jax.random.key(0), batch)
    pixels = jax.tree.map(jnp.asarray, batch.pixels)
    shapes = lambda method: jax.eval_shape(lambda p, b: model.apply(p, b, method=method), params, batch)
    yield "normalize_pixels", "B I S S 3", jax.eval_shape(normalize_pixels, pixels)
    flat = lambda owl, b: owl.vision_model(b.pixels.reshape(-1, *b.pixels.shape[2:]))
    yield "vision_model (SigLIP)", "I L Ev", shapes(flat)
    outputs = shapes("__call__")
    cache = shapes(lambda owl, b: owl.image_cache(owl.encode_images(b.pixels), b.image_positions))
    yield "vision2text_model", "B I L E", outputs.image_features
    yield "image keys", "M B K I L D", cache.keys
    yield "image values", "M B K I L D", cache.values
    yield "hidden states", "N+1 B T E", outputs.hidden_states
    yield "logits", "B T V", outputs.logits


def describe(value: Any) -> str:
    """An image's size, or an array's shape and dtype, and its numbers when they are few."""
    if isinstance(value, Image.Image):
        return f"{value.width} x {value.height} {value.mode}"
    few = f"  {' '.join(map(str, value.ravel()))}" if isinstance(value, np.ndarray) and value.size <= 24 else ""
    return f"{value.dtype.name}[{', '.join(map(str, value.shape))}]{few}"


if __name__ == "__main__":
    main()
