"""The fields of a `Processor` beyond its tokenizer, as processor.json holds them or as they follow from a checkpoint."""

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

from owl3_jax.config import JsonTree, MediaStyle, load_json_tree
from owl3_jax.formats.checkpoint import load_config
from owl3_jax.formats.workdir import is_workdir
from owl3_jax.host.files import write_text
from owl3_jax.processing.video_sampling import VideoSampling

SETTINGS = "processor.json"


def read_settings(path: Path) -> JsonTree:
    """The settings in a processor.json. Raises ValueError or TypeError when it holds none; see `naming_damage`."""
    settings = {**json.loads(path.read_text(encoding="utf-8"))}
    return settings | {"video_sampling": load_json_tree(VideoSampling, settings.get("video_sampling", {}))}


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


def settings_of_checkpoint(directory: Path) -> JsonTree:
    """The settings of a checkpoint directory without processor.json.

    A training run's images are whole. A released checkpoint gets the official settings: crops on, in the words of 7B-240728
    for the gated form and with markers for the others.

    Raises CheckpointError when the directory is not a checkpoint.
    """
    model = load_config(directory)
    if is_workdir(directory):
        return {"image_size": model.vision.image_size}
    # 1B and 2B (static) are inferred to share crop and video templates with 7B-241101 (joint); see docs/processing.md.
    media_style: MediaStyle = "words" if model.form == "gated" else "markers"
    return {"image_size": model.vision.image_size, "media_style": media_style, "crop": True}
