"""Processors of checkpoint directories: settings from processor.json, or from the model that lies there."""

import dataclasses
import json
from pathlib import Path

from owl3_jax.config import load_json_tree
from owl3_jax.convert.load import load_config
from owl3_jax.formats.workdir import is_workdir
from owl3_jax.host.files import write_text
from owl3_jax.processing.media import MediaStyle
from owl3_jax.processing.processor import Processor
from owl3_jax.processing.tokenizer import ChatTokenizer
from owl3_jax.processing.tokenizer_files import FAST, read_tokenizer
from owl3_jax.processing.video import VideoSampling

SETTINGS = "processor.json"


def load_processor(directory: Path) -> Processor:
    """The processor of a directory: official, converted, or a training run's.

    processor.json decides if it is there. Otherwise a training run's images are whole, and a released checkpoint gets the
    official settings: crops on, in the words of 7B-240728 for the gated form and with markers for the others.

    Raises:
        FileNotFoundError: the directory has no tokenizer.
        ValueError: a file is damaged, or the directory does not tell its model (CheckpointError).
    """
    tokenizer = read_tokenizer(directory)
    if (directory / SETTINGS).exists():
        return _read_settings(directory / SETTINGS, tokenizer)
    model = load_config(directory)
    if is_workdir(directory):
        return Processor(tokenizer, model.vision.image_size)
    # 1B and 2B (static) are inferred to share crop and video templates with 7B-241101 (joint); see docs/processing.md.
    media_style: MediaStyle = "words" if model.form == "gated" else "markers"
    return Processor(tokenizer, model.vision.image_size, media_style=media_style, crop=True)


def save_processor(processor: Processor, directory: Path) -> None:
    """Writes tokenizer.json and processor.json, from which `load_processor` makes the same processor."""
    settings = {field.name: getattr(processor, field.name) for field in dataclasses.fields(Processor)}
    del settings["tokenizer"]
    settings["video_sampling"] = dataclasses.asdict(processor.video_sampling)
    write_text(directory / SETTINGS, json.dumps(settings, indent=2) + "\n")
    processor.tokenizer.save(directory / FAST)


def _read_settings(path: Path, tokenizer: ChatTokenizer) -> Processor:
    try:
        settings = {**json.loads(path.read_text(encoding="utf-8"))}
        sampling = load_json_tree(VideoSampling, settings.pop("video_sampling", {}))
        return Processor(tokenizer, video_sampling=sampling, **settings)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} does not describe a processor: {error}; Processor.save writes one that does") from error
