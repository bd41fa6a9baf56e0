"""config.json of a directory in Hugging Face's layout <-> `ModelConfig`.

config.json does not specify the form of hyper attention; the names of a checkpoint's tensors imply it.
"""

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path

from owl3_jax.config import ConfigError, Form, JsonTree, ModelConfig, VisionConfig
from owl3_jax.formats.errors import CheckpointError
from owl3_jax.formats.weight_files import find_tensors

CONFIG = "config.json"


def read_config_json(directory: Path) -> ModelConfig:
    """The architecture of a directory in Hugging Face's layout: its config.json, and the form that its tensor names imply.

    Raises CheckpointError when config.json is not JSON or describes no model, or the weight files cannot be read.
    """
    try:
        tree = json.loads((directory / CONFIG).read_text())
        return model_from_config_json(tree, form_of(find_tensors(directory)))
    except KeyError as error:
        raise CheckpointError(directory, [f"{CONFIG} has no {error}"]) from error
    except (ConfigError, TypeError, json.JSONDecodeError) as error:
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
        KeyError: it has no `hyper_layers`.
    """
    _refuse_other_computations(tree)
    tree = {**(tree.get("rope_parameters") or {}), **tree}  # where newer configs keep rope_theta
    return ModelConfig(
        form=form,
        hyper_layers=tuple(tree["hyper_layers"]),
        vision=VisionConfig(**_plain_fields(VisionConfig, tree.get("vision_config") or {})),
        **_plain_fields(ModelConfig, tree),
    )


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


def _plain_fields(cls: type[ModelConfig] | type[VisionConfig], tree: JsonTree) -> JsonTree:
    """The numbers and switches in `tree` that `cls` has a field for; JSON may write 1000000 for 1e6."""
    kinds = {field.name: field.type for field in dataclasses.fields(cls) if field.type in (int, float, bool)}
    return {name: float(tree[name]) if kind is float else tree[name] for name, kind in kinds.items() if name in tree}


def _refuse_other_computations(tree: JsonTree) -> None:
    """Raises ConfigError when a config.json asks for what other models of the Qwen2 family compute and this one does not."""
    rope = tree.get("rope_scaling") or tree.get("rope_parameters") or {}
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        raise ConfigError(
            f"rope_scaling {rope} is not supported; without it the model reads up to max_position_embeddings positions "
            "as trained"
        )
    if tree.get("use_sliding_window"):
        raise ConfigError("use_sliding_window is not supported: every layer sees the whole text")
    activation = tree.get("hidden_act", "silu")
    if activation != "silu":
        raise ConfigError(f"hidden_act {activation!r} is not supported: the MLP is SwiGLU, with silu")
