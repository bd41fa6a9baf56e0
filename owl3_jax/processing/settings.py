"""The fields of a `Processor` beyond its tokenizer, as processor.json holds them or as they follow from a checkpoint."""

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

from owl3_jax.config import JsonTree, MediaStyle, ModelConfig
from owl3_jax.formats.errors import CheckpointError
from owl3_jax.formats.json_files import load_dataclass, read_json_object, whole_number
from owl3_jax.formats.workdir import is_workdir
from owl3_jax.host.files import write_text
from owl3_jax.processing.tokenizer import ChatTokenizer
from owl3_jax.processing.video_sampling import VideoSampling

SETTINGS = "processor.json"


def read_settings(path: Path) -> JsonTree:
    """The settings in a processor.json. Raises ValueError or TypeError when it holds none; see `naming_damage`."""
    settings = read_json_object(path)
    if "image_size" in settings:
        whole_number("image_size", settings["image_size"])
    return settings | {"video_sampling": load_dataclass(VideoSampling, "video_sampling", settings.get("video_sampling", {}))}


def write_settings(path: Path, settings: JsonTree) -> None:
    """Writes a processor.json, from which `read_settings` makes the same settings."""
    plain = settings | {"video_sampling": dataclasses.asdict(settings["video_sampling"])}
    write_text(path, json.dumps(plain, indent=2) + "\n")


@contextlib.contextmanager
def naming_damage(path: Path) -> Iterator[None]:
    """Turns an error in the settings of a processor.json into a ValueError that names the file."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} does not describe a processor: {error}; Processor.save writes one that does") from error


def settings_of_checkpoint(directory: Path, model: ModelConfig) -> JsonTree:
    """The settings of a checkpoint directory without processor.json, whose architecture is `model`.

    A training run's images are whole. A released checkpoint gets the official settings: crops on, in the words of 7B-240728
    for the gated form and with markers for the others.
    """
    if is_workdir(directory):
        return {"image_size": model.vision.image_size}
    # 1B and 2B (static) are inferred to share crop and video templates with 7B-241101 (joint); see docs/processing.md.
    media_style: MediaStyle = "words" if model.form == "gated" else "markers"
    return {"image_size": model.vision.image_size, "media_style": media_style, "crop": True}


def check_fit(directory: Path, model: ModelConfig, tokenizer: ChatTokenizer, image_size: int) -> None:
    """Raises CheckpointError when a tokenizer or a processor's image size is of another model than a directory's own."""
    problems = []
    if image_size != model.vision.image_size:
        problems.append(
            f"{SETTINGS}: image_size is {image_size}, but the model's images are of {model.vision.image_size} pixels; "
            f"correct it, or delete {SETTINGS} if it is of another model"
        )
    # A lookup beyond the last row would not fail but take the last row: two different tokens would be one to the model.
    try:
        tokenizer.check_embedding_rows(model.vocab_size)
    except ValueError as error:
        problems.append(f"{error}; is the tokenizer that of another model?")
    if problems:
        raise CheckpointError(directory, problems)
