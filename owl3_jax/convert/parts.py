"""The parameters that training starts from: a released SigLIP, a released Qwen2, the rest fresh (paper, Training).

The parts are put together under the official names, tensor by tensor, and then loaded as any other checkpoint.
"""

import dataclasses
import functools
import json
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh
from jaxtyping import Array, Key, Shaped

from owl3_jax.config import ComputeConfig, DType, JsonTree, ModelConfig
from owl3_jax.convert.load import Convert, read_parameters
from owl3_jax.convert.official import assemble
from owl3_jax.convert.table import EMBEDDING, TIED_HEAD, entries_for, parameter_to_official
from owl3_jax.formats.checkpoint import check_path
from owl3_jax.formats.config_json import CONFIG
from owl3_jax.formats.errors import CheckpointError
from owl3_jax.formats.weight_files import Tensor, find_tensors
from owl3_jax.models.owl3 import initial_params
from owl3_jax.params import Params

_FRESH = ("vision2text_model/", "language_model/hyper_layers/gate")  # paths that neither part has
# Settings in which a part may differ from the model that it becomes a part of.
_FREE = ("vocab_size", "tie_word_embeddings", "max_position_embeddings", "initializer_range", "image_size")


def load_parts(
    vision: Path,
    language: Path,
    config: ModelConfig,
    mesh: Mesh | None = None,
    *,
    key: Key[Array, ""],
    dtype: DType | None = None,
    vocab_multiple: int = 1,
    convert: Convert | None = None,
) -> Params:
    """Parameters from a SigLIP directory and a Qwen2 directory, both of Hugging Face's layout.

    `v_kv_proj` starts from the language model's own key and value projections, projector and gates from fresh values.
    A larger vocabulary is truncated to the rows that the model has.

    Args:
        vision: e.g. siglip-so400m-patch14-384; its text model is ignored.
        language: e.g. Qwen2-7B.
        config: of the model that they become.
        mesh, vocab_multiple, convert: as for `load_params`.
        key: of the fresh values.
        dtype: what to cast to while reading; the files' own by default.

    Raises:
        CheckpointError: the parts do not fit the config; it lists everything that is wrong.
    """
    for directory in (language, vision):
        check_path(directory)
    problems = _differences(language, dataclasses.asdict(config))
    problems += _differences(vision, dataclasses.asdict(config.vision), section="vision_config")
    if problems:
        raise CheckpointError(language, problems)
    tensors = {name: t for name, t in find_tensors(vision).items() if name.startswith("vision_model.")}
    tensors |= _language_tensors(language, config)
    tensors |= _fresh_tensors(config, key)
    checkpoint = assemble(language, tensors, config, np.dtype(dtype) if dtype else None)
    return read_parameters(checkpoint.parameters, config, mesh, vocab_multiple, convert)


def _differences(directory: Path, expected: JsonTree, section: str = "") -> list[str]:
    """One line for each setting in a part's config.json that is not as expected."""
    path = directory / CONFIG
    tree = json.loads(path.read_text())
    tree = tree.get(section, tree)
    names = (tree.keys() & expected.keys()) - set(_FREE)
    return [f"{path}: {name} is {tree[name]}, not {expected[name]}" for name in sorted(names) if tree[name] != expected[name]]


def _language_tensors(directory: Path, config: ModelConfig) -> dict[str, Tensor]:
    tensors = {f"language_model.{name}": tensor for name, tensor in find_tensors(directory).items()}
    tensors = {name: tensor._replace(name=name) for name, tensor in tensors.items()}
    for name in {EMBEDDING, TIED_HEAD} & tensors.keys():
        tensors[name] = _first_rows(tensors[name], config.vocab_size)
    for layer in config.hyper_layer_indices:
        attention = f"language_model.model.layers.{layer}.self_attn"
        for kind in ("weight", "bias"):
            key, value = (tensors.get(f"{attention}.{part}.{kind}") for part in ("k_proj", "v_proj"))
            if key and value:  # one that is missing is reported later
                name = f"{attention}.v_kv_proj.{kind}"
                tensors[name] = _keys_and_values(name, key, value, heads=config.num_key_value_heads)
    return tensors


def _first_rows(tensor: Tensor, rows: int) -> Tensor:
    rows = min(rows, tensor.shape[0])  # too few are found by the check of shapes
    return tensor._replace(shape=(rows, *tensor.shape[1:]), read=lambda: tensor.read()[:rows])


def _keys_and_values(name: str, key: Tensor, value: Tensor, *, heads: int) -> Tensor:
    """`v_kv_proj` with rows [head, (key, value), D] from two projections with rows [head, D]."""
    shape = (2 * key.shape[0], *key.shape[1:])

    def read() -> Shaped[np.ndarray, "..."]:
        parts = [part.read().reshape(heads, -1, *part.shape[1:]) for part in (key, value)]
        return np.stack(parts, axis=1).reshape(shape)

    return key._replace(name=name, shape=shape, read=read)


def _fresh_tensors(config: ModelConfig, key: Key[Array, ""]) -> dict[str, Tensor]:
    """Projector and gates as the model initialises them, under their official names."""

    @jax.jit
    def init(key: Key[Array, ""]) -> dict[str, Array]:
        params = flatten_dict(nn.unbox(initial_params(config, ComputeConfig(), key)), sep="/")
        return {path: value for path, value in params.items() if path.startswith(_FRESH)}

    values = jax.device_get(init(key))
    entries = [entry for entry in entries_for(config) if entry.path in values]
    named = [pair for entry in entries for pair in parameter_to_official(entry, values[entry.path], config)]
    return {name: _in_memory(name, value) for name, value in named}


def _in_memory(name: str, value: Shaped[np.ndarray, "..."]) -> Tensor:
    return Tensor(name, Path("(fresh)"), value.dtype, value.shape, functools.partial(np.asarray, value))
