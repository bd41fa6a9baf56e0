"""A SigLIP and a Qwen2 directory in Hugging Face's layout, with random weights of a small model's shapes."""

import json
from collections.abc import Mapping
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import tokenizers
from jaxtyping import Shaped
from make_random_checkpoint import unused_shapes

from owl3_jax.config import ComputeConfig, DType, ModelConfig
from owl3_jax.convert.table import params_to_official
from owl3_jax.formats.config_json import config_json_of
from owl3_jax.formats.weight_writer import TensorSpec, WeightWriter
from owl3_jax.models.owl3 import initial_params

_VISION, _LANGUAGE = "vision_model.", "language_model."
_NOT_OF_QWEN2 = (".self_attn.v_kv_proj.", ".self_attn.gate")


def write_parts(
    vision: Path, language: Path, config: ModelConfig, tokenizer: tokenizers.Tokenizer, dtype: DType = "bfloat16", seed: int = 0
) -> None:
    """Writes both directories, which must not exist."""
    params = nn.unbox(jax.jit(lambda key: initial_params(config, ComputeConfig(), key))(jax.random.key(seed)))
    tensors = params_to_official(jax.device_get(params), config)
    rng = np.random.default_rng(seed)
    siglip = {name: value for name, value in tensors.items() if name.startswith(_VISION)}
    siglip |= {f"{_VISION}{name}": 0.02 * rng.standard_normal(shape) for name, shape in unused_shapes(config.vision).items()}
    qwen2 = {
        name.removeprefix(_LANGUAGE): value
        for name, value in tensors.items()
        if name.startswith(_LANGUAGE) and not any(part in name for part in _NOT_OF_QWEN2)
    }
    tree = config_json_of(config)
    _write(vision, {"model_type": "siglip", "vision_config": tree.pop("vision_config")}, siglip, np.dtype(dtype))
    of_qwen2 = {name: value for name, value in tree.items() if name not in ("architectures", "hyper_layers")}
    _write(language, of_qwen2 | {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}, qwen2, np.dtype(dtype))
    tokenizer.save(str(language / "tokenizer.json"))


def _write(
    directory: Path, tree: Mapping[str, object], tensors: Mapping[str, Shaped[np.ndarray, "..."]], dtype: np.dtype
) -> None:
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps({**tree, "torch_dtype": dtype.name}, indent=2) + "\n")
    writer = WeightWriter(directory, [TensorSpec(name, dtype, value.shape) for name, value in tensors.items()])
    for name, value in tensors.items():
        writer.write(name, np.asarray(value, np.float32).astype(dtype))
