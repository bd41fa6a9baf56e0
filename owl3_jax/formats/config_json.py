"""config.json of a directory in Hugging Face's layout <-> `ModelConfig`.

config.json does not specify the form of hyper attention; the names of a checkpoint's tensors imply it.
"""

import dataclasses
from collections.abc import Iterable
from pathlib import Path

from owl3_jax.config import ConfigError, DType, Form, JsonTree, ModelConfig, VisionConfig
from owl3_jax.formats.errors import CheckpointError
from owl3_jax.formats.json_files import JsonError, check, read_json_object, values_of
from owl3_jax.formats.weight_files import find_tensors

CONFIG = "config.json"
_DTYPE_KEYS = ("dtype", "torch_dtype")  # of newer and older versions of transformers


def read_config_json(directory: Path) -> ModelConfig:
    """The architecture of a directory in Hugging Face's layout: its config.json, and the form that its tensor names imply.

    Raises CheckpointError when config.json is not JSON or describes no model, or the weight files cannot be read.
    """
    try:
        tree = read_json_object(directory / CONFIG)
        return model_from_config_json(tree, form_of(find_tensors(directory)))
    except (ConfigError, JsonError) as error:
        raise CheckpointError(directory, [f"{CONFIG}: {error}"]) from error


def form_of(names: Iterable[str]) -> Form:
    """The form of hyper attention of a checkpoint with tensors of these names."""
    names = tuple(names)
    if any(name.endswith("self_attn.gate_proj.0.weight") for name in names):
        return "gated"
    return "static" if any(name.endswith("self_attn.gate") for name in names) else "joint"


def model_from_config_json(tree: JsonTree, form: Form) -> ModelConfig:
    """The architecture that the content of a config.json describes.

    Settings that it leaves out are those of 7B-240728; keys that are unknown here are ignored.

    Raises:
        ConfigError: it asks for a computation that this model does not have, or a setting cannot work.
        JsonError: it has no `hyper_layers`, or a value of a wrong type.
    """
    if "hyper_layers" not in tree:
        raise JsonError("it has no 'hyper_layers': is it the config.json of an mPLUG-Owl3?")
    rope = _object(tree, "rope_scaling") or _object(tree, "rope_parameters")
    _refuse_other_computations(tree, rope)
    # Newer configs keep the base among the other parameters of RoPE.
    tree = {name: value for name, value in rope.items() if name == "rope_theta"} | tree
    return ModelConfig(
        form=form,
        vision=VisionConfig(**values_of(VisionConfig, _object(tree, "vision_config"), "vision_config.")),
        **values_of(ModelConfig, {name: value for name, value in tree.items() if name not in ("form", "vision")}),
    )


def with_dtype(tree: JsonTree, dtype: DType) -> JsonTree:
    """The content of a config.json whose tensors are all of `dtype`: every key that names a dtype says so, nested ones too."""
    changed = _with_dtype(tree, dtype)
    return changed if any(key in changed for key in _DTYPE_KEYS) else changed | {"torch_dtype": dtype}


def _with_dtype(tree: JsonTree, dtype: DType) -> JsonTree:
    nested = {key: _with_dtype(value, dtype) for key, value in tree.items() if isinstance(value, dict)}
    return tree | nested | {key: dtype for key in _DTYPE_KEYS if key in tree}


def config_json_of(config: ModelConfig) -> JsonTree:
    """The content of a config.json for this architecture; `model_from_config_json`, given the form, undoes it."""
    tree = dataclasses.asdict(config)
    vision = tree.pop("vision")
    return {
        "architectures": ["mPLUGOwl3Model"],
        "model_type": "mplugowl3",
        **{name: value for name, value in tree.items() if name != "form"},
        "hyper_layers": list(config.hyper_layers),
        "vision_config": {"model_type": "siglip_vision_model", **vision},
    }


def _object(tree: JsonTree, key: str) -> JsonTree:
    """The object that is the value of a key; empty where there is none."""
    value = tree.get(key)
    check(value is None or isinstance(value, dict), key, value, "an object, {...}")
    return value or {}


def _refuse_other_computations(tree: JsonTree, rope: JsonTree) -> None:
    """Raises ConfigError when a config.json asks for what other models of the Qwen2 family compute and this one does not."""
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise ConfigError(
            f"rope_scaling of type {_short(kind)} is not supported; without it the model reads up to max_position_embeddings "
            "positions as trained"
        )
    sliding = tree.get("use_sliding_window")
    check(sliding is None or isinstance(sliding, bool), "use_sliding_window", sliding, "true or false")
    if sliding:
        raise ConfigError("use_sliding_window is not supported: every layer sees the whole text")
    activation = tree.get("hidden_act", "silu")
    if activation != "silu":
        raise ConfigError(f"hidden_act {_short(activation)} is not supported: the MLP is SwiGLU, with silu")


def _short(value: object) -> str:
    return repr(value)[:60]
