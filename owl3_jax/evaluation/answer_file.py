"""Where the answers of a checkpoint are kept, and the key under which an answer is stored.

The digest in the file's name is of this package's code, the weight files (names, sizes and times), the model, the dtypes and
the processor, so that another checkpoint or another version never gets these answers. A question has a digest of its own:
after a change of a task's settings, questions that have changed are asked again, and the others are not.
"""

import dataclasses
import hashlib
import importlib.metadata
import itertools
import json
from collections.abc import Iterable, MutableMapping
from pathlib import Path

from owl3_jax.config import ModelConfig
from owl3_jax.evaluation.asked import Asked, most_new_tokens
from owl3_jax.evaluation.data_root import DataRoot
from owl3_jax.formats.converted import PARAMS
from owl3_jax.formats.workdir import is_workdir, last_checkpoint
from owl3_jax.host.source import source_digest
from owl3_jax.processing.processor import Processor

_WEIGHTS = ("*.safetensors", "*.bin", f"{PARAMS}/**/*")  # of official checkpoints, and of converted ones


def answers_path(directory: Path, checkpoint: Path, model: ModelConfig, dtype: str, processor: Processor) -> Path:
    """`answers-<digest>.jsonl` in `directory`, for the answers of a checkpoint with these settings.

    Raises CheckpointError when `checkpoint` is a workdir without a complete checkpoint.
    """
    others = [field.name for field in dataclasses.fields(processor) if field.name != "tokenizer"]
    facts = {
        "code": [source_digest(), *(importlib.metadata.version(name) for name in ("jax", "jaxlib"))],
        "weights": [f"{path.relative_to(checkpoint)} {_version(path)}" for path in weight_files(checkpoint)],
        "model": dataclasses.asdict(model),
        "dtype": dtype,
        "tokenizer": processor.tokenizer.to_json(),
        "processor": {name: repr(getattr(processor, name)) for name in others},
    }
    return directory / f"answers-{_digest([json.dumps(facts).encode()])}.jsonl"


def weight_files(checkpoint: Path) -> list[Path]:
    """The files that hold a checkpoint's parameters; of a training run, all files of its last checkpoint."""
    if is_workdir(checkpoint):
        found: Iterable[Path] = last_checkpoint(checkpoint).rglob("*")
    else:
        found = itertools.chain.from_iterable(map(checkpoint.glob, _WEIGHTS))
    return sorted(path for path in found if path.is_file())


def answer_key(asked: Asked, data: DataRoot, versions: MutableMapping[str, str]) -> str:
    """The key of a question's answer: its task and id, and a digest of what the model is asked and how.

    Files of images and videos are known by their size and time, which are looked up once and kept in `versions`.
    """
    task, question = asked
    places = [name.partition("#")[0] for name in (*question.images, *(video.file for video in question.videos))]
    for name in places:
        if name not in versions:
            versions[name] = _version(data.location(name))
    facts = {
        "text": question.text,
        "images": question.images,
        "videos": question.videos,
        "files": {name: versions[name] for name in dict.fromkeys(places)},
        "crop": [task.crop, data.settings.crop],
        "max_new_tokens": most_new_tokens(task, data.settings),
    }
    return f"{task.name}/{question.id} {_digest([json.dumps(facts).encode()])}"


def _version(location: str | Path) -> str:
    """The size of a file of this machine and when it was changed; of a folder those of its files."""
    path = Path(location)
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
