"""A converted directory: parameters as orbax keeps them, with all that the way back needs. `owl3_jax.convert` writes it.

params/                  the parameters, an orbax checkpoint (`owl3_jax.convert.orbax_params`)
model.json               ModelConfig, and whether the official files hold a tied head twice
unused.safetensors       official tensors that the model never reads, unchanged; absent if there are none
config.json, tokenizer.json, ...  the other files of the official directory
"""

from pathlib import Path

from owl3_jax.config import ConfigError, ModelConfig
from owl3_jax.formats.errors import CheckpointError
from owl3_jax.formats.json_files import JsonError, check, load_dataclass, read_json_object
from owl3_jax.formats.weight_files import Tensor, read_safetensors

PARAMS = "params"
MODEL = "model.json"
UNUSED = "unused"  # stem of the file


def is_converted(directory: Path) -> bool:
    """Whether this is a converted directory."""
    return (directory / MODEL).exists() and (directory / PARAMS).exists()


def read_model(directory: Path) -> tuple[ModelConfig, bool]:
    """The architecture of a converted directory, and whether the official files hold a tied head twice.

    Raises CheckpointError when model.json cannot be read.
    """
    try:
        about = read_json_object(directory / MODEL)
        check(isinstance(about.get("tied_head"), bool), "tied_head", about.get("tied_head"), "true or false")
        return load_dataclass(ModelConfig, "model", about.get("model")), about["tied_head"]
    except (JsonError, ConfigError) as error:
        raise CheckpointError(directory, [f"{MODEL}: {error}; convert the checkpoint again"]) from error


def read_unused(directory: Path) -> list[Tensor]:
    """The official tensors in a converted directory that are not parameters.

    Raises CheckpointError when their file is damaged.
    """
    file = directory / f"{UNUSED}.safetensors"
    if not file.exists():
        return []
    tensors, problems = read_safetensors(file)
    if problems:
        raise CheckpointError(directory, problems)
    return list(tensors.values())
