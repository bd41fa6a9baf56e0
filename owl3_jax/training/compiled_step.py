"""The compiled train step as a file: written by `owl3 compile --save`, run by `owl3 train --compiled`.

The file is a line of JSON that says what the step was compiled for, then the executable as jax writes it. It is code: loading
it runs what it holds (jax keeps executables in pickles). Load only what you have compiled yourself.
"""

import dataclasses
import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path

import jax
from jax.experimental import serialize_executable
from jax.sharding import Mesh

from owl3_jax.batch import Batch
from owl3_jax.config import Config
from owl3_jax.host.files import write_atomically
from owl3_jax.host.source import source_digest
from owl3_jax.training.step import Metrics, TrainState, abstract_state, example_batch, make_train_step

Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]

# Sections and fields of a config that a compiled step does not depend on.
_FREE = {
    "eval": None,
    "processor": None,
    "data": ("sources", "data_dir", "pack", "too_long", "max_skipped", "jpeg_draft", "workers", "prefetch", "timeout", "seed"),
    "train": ("seed", "log_every", "checkpoint_every", "checkpoints_to_keep", "profile_steps"),
}


class CompiledStepError(RuntimeError):
    """A file that does not hold the step of this run, with everything that differs."""


def save(path: Path, config: Config, mesh: Mesh, compiled: jax.stages.Compiled) -> None:
    """Writes the compiled `make_train_step(config, mesh)`."""
    payload, _, _ = serialize_executable.serialize(compiled)
    header = json.dumps(_compiled_for(config, mesh)).encode()
    write_atomically(path, lambda file: file.writelines([header, b"\n", payload]))


def load(path: Path, config: Config, mesh: Mesh) -> Step:
    """The step of `save`, to be called like the one of `make_train_step`.

    The file is executed, so it must come from someone you trust.

    Raises:
        CompiledStepError: it was compiled for something else; nothing of it has been executed.
        OSError: it cannot be read.
    """
    header, _, payload = path.read_bytes().partition(b"\n")
    differences = _differences(_read(header, path), _compiled_for(config, mesh))
    if differences:
        listed = "\n  ".join(differences)
        raise CompiledStepError(f"{path} is not a compiled step of this run; compile it again:\n  {listed}")
    lowered = make_train_step(config, mesh).lower(abstract_state(config, mesh), example_batch(config))
    devices = list(mesh.devices.flat)  # in the order that the step was compiled for
    return serialize_executable.deserialize_and_load(
        payload,
        jax.tree.structure(lowered.args_info),
        jax.tree.structure(lowered.out_info),
        backend=devices[0].client,
        execution_devices=devices,
    )


def _compiled_for(config: Config, mesh: Mesh) -> dict[str, object]:
    """All that has to be the same where the step runs, as JSON gives it back."""
    device = mesh.devices.flat[0]
    packages = ("jax", "jaxlib", *(["libtpu"] if device.platform == "tpu" else []))
    settings = json.loads(json.dumps(dataclasses.asdict(config)))
    for section, fields in _FREE.items():
        for name in list(settings[section]) if fields is None else fields:
            del settings[section][name]
    flat = {f"{section}.{name}": value for section, values in settings.items() for name, value in values.items()}
    return {
        **{name: importlib.metadata.version(name) for name in packages},
        "source code": source_digest(),
        "devices": f"{mesh.size} x {device.device_kind}",
        "number of sources": len(config.data.sources),
        **flat,
    }


def _read(header: bytes, path: Path) -> dict[str, object]:
    try:
        found = json.loads(header)
    except ValueError as error:
        raise CompiledStepError(f"{path} is not a file of owl3 compile --save") from error
    if not isinstance(found, dict):
        raise CompiledStepError(f"{path} is not a file of owl3 compile --save")
    return found


def _differences(found: dict[str, object], wanted: dict[str, object]) -> list[str]:
    names = [*wanted, *(name for name in found if name not in wanted)]
    return [
        f"{name}: {found.get(name)!r} there, {wanted.get(name)!r} in this run"
        for name in names
        if found.get(name) != wanted.get(name)
    ]
