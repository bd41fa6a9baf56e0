"""Where the answers of a checkpoint are kept, and the key under which an answer is stored.

The digest in the file's name is of this package's code, the weight files (names, sizes and times), the model, the dtypes, the
processor and the sampling settings, so that another checkpoint or another version never gets these answers. A prompt has a
digest of its own: after a change of a task's settings, prompts that have changed are asked again, and the others are not.
"""

import dataclasses
import hashlib
import importlib.metadata
import itertools
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from owl3_jax.config import Config
from owl3_jax.evaluation.task import AnyPrompt
from owl3_jax.formats.converted import PARAMS
from owl3_jax.formats.workdir import is_workdir, last_checkpoint
from owl3_jax.host.source import source_digest
from owl3_jax.inference.sampling import Sampling
from owl3_jax.processing.images import ImageSource, SupportsArray
from owl3_jax.processing.processor import Processor
from owl3_jax.processing.video import VideoSource

_WEIGHTS = ("*.safetensors", "*.bin", f"{PARAMS}/**/*")  # of official checkpoints, and of converted ones


def answers_path(directory: Path, checkpoint: Path, config: Config, processor: Processor, sampling: Sampling) -> Path:
    """`answers-<digest>.jsonl` in `directory`, for the answers of a checkpoint with these settings.

    Raises CheckpointError when `checkpoint` is a workdir without a complete checkpoint.
    """
    others = [field.name for field in dataclasses.fields(processor) if field.name != "tokenizer"]
    facts = {
        "code": [source_digest(), *(importlib.metadata.version(name) for name in ("jax", "jaxlib"))],
        "weights": [f"{path.relative_to(checkpoint)} {_version(path)}" for path in weight_files(checkpoint)],
        "model": dataclasses.asdict(config.model),
        "dtypes": [config.compute.dtype, config.compute.param_dtype],
        "tokenizer": processor.tokenizer.to_json(),
        "processor": {name: repr(getattr(processor, name)) for name in others},
        "sampling": dataclasses.asdict(sampling),
    }
    return directory / f"answers-{_digest([json.dumps(facts).encode()])}.jsonl"


def weight_files(checkpoint: Path) -> list[Path]:
    """The files that hold a checkpoint's parameters; of a training run, all files of its last checkpoint."""
    if is_workdir(checkpoint):
        found: Iterable[Path] = last_checkpoint(checkpoint).rglob("*")
    else:
        found = itertools.chain.from_iterable(map(checkpoint.glob, _WEIGHTS))
    return sorted(path for path in found if path.is_file())


def prompt_digest(prompt: AnyPrompt) -> str:
    """A hash of what the model is asked, images and videos included."""
    return _digest([json.dumps(prompt.messages).encode(), *map(_content, prompt.images), *map(_content, prompt.videos)])


def _content(source: ImageSource | VideoSource) -> bytes:
    """Bytes that change when the image or video does; files are not read."""
    match source:
        case str() | Path():
            path = Path(source)
            return f"{path} {_version(path)}".encode()
        case bytes() | bytearray() | memoryview():
            return bytes(source)
        case Image.Image():
            return f"{source.mode} {source.size} ".encode() + source.tobytes()
        case SupportsArray():
            array = np.asarray(source)
            return f"{array.dtype} {array.shape} ".encode() + array.tobytes()
        case frames:
            return _digest(map(_content, frames)).encode()


def _version(path: Path) -> str:
    """The size of a file and when it was changed; of a folder those of its files."""
    if path.is_dir():
        return " ".join(f"{file.name} {_version(file)}" for file in sorted(path.iterdir()) if file.is_file())
    if not path.exists():
        return "missing"
    status = path.stat()
    return f"{status.st_size} {status.st_mtime_ns}"


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))  # so that no two lists of parts look the same
        digest.update(part)
    return digest.hexdigest()
