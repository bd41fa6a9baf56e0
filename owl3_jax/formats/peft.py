"""PEFT adapter directories: `adapter_config.json`, and `adapter_model.safetensors` with names of the official model's modules.

base_model.model.language_model.model.layers.0.self_attn.q_proj.lora_A.weight    [r, in]
base_model.model.language_model.model.layers.0.self_attn.q_proj.lora_B.weight    [out, r]
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from owl3_jax.config import JsonTree
from owl3_jax.formats.errors import CheckpointError
from owl3_jax.formats.json_files import JsonError, check, number, read_json_object
from owl3_jax.formats.weight_files import Tensor, read_weight_file

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_NAME = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<side>[AB])(?:\.default)?\.weight")
_UNSUPPORTED = ("use_dora", "modules_to_save", "lora_bias", "fan_in_fan_out", "use_qalora", "trainable_token_indices")


class PeftModule(NamedTuple):
    """The adapter of one linear map: scale * B @ A is added to its weight [out, in]."""

    a: Tensor  # [r, in]
    b: Tensor  # [out, r]
    scale: float


def read_peft(directory: Path) -> dict[str, PeftModule]:
    """The adapters in a PEFT directory by the official name of their module.

    Raises CheckpointError when it is none, or one of a kind that cannot be read: only plain LoRA can.
    """
    try:
        config = _read_config(directory / ADAPTER_CONFIG)
    except JsonError as error:
        raise CheckpointError(directory, [f"{ADAPTER_CONFIG}: {error}"]) from error
    if not (directory / ADAPTER_WEIGHTS).exists():
        raise CheckpointError(directory, [f"it has no {ADAPTER_WEIGHTS}; save the adapter with safe_serialization=True"])
    tensors, problems = read_weight_file(directory / ADAPTER_WEIGHTS)
    sides: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        match = _NAME.fullmatch(name)
        if match is None:
            problems.append(f"{name}: not a matrix of LoRA")
        else:
            sides.setdefault(match["module"], {})[match["side"]] = tensor
    problems += [f"{module}: only lora_{next(iter(found))} is there" for module, found in sides.items() if len(found) < 2]
    problems += [
        f"{module}: shapes {list(found['A'].shape)} and {list(found['B'].shape)} do not fit each other"
        for module, found in sides.items()
        if len(found) == 2 and not _fit(found["A"], found["B"])
    ]
    if not tensors and not problems:
        problems.append(f"{ADAPTER_WEIGHTS} holds no tensor")
    if problems:
        raise CheckpointError(directory, problems)
    return {
        module: PeftModule(found["A"], found["B"], _scale(config, module, found["A"].shape[0]))
        for module, found in sides.items()
    }


def peft_names(module: str) -> tuple[str, str]:
    """What the two tensors of a module are called."""
    return f"{_PREFIX}{module}.lora_A.weight", f"{_PREFIX}{module}.lora_B.weight"


def write_peft_config(
    directory: Path, *, rank: int, alpha: float, dropout: float, modules: list[str], base: str | None
) -> None:
    """Writes `adapter_config.json`."""
    tree = {
        "peft_type": "LORA",
        "task_type": None,  # any: the official class is none of those that PEFT knows
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "use_rslora": False,
        "bias": "none",
        "fan_in_fan_out": False,
        "modules_to_save": None,
        "target_modules": modules,
    }
    (directory / ADAPTER_CONFIG).write_text(json.dumps(tree, indent=2) + "\n", encoding="utf-8")


def _read_config(path: Path) -> JsonTree:
    config = read_json_object(path)
    check(config.get("peft_type") == "LORA", "peft_type", config.get("peft_type"), '"LORA"')
    check(config.get("bias", "none") == "none", "bias", config.get("bias"), '"none"')
    for key in _UNSUPPORTED:
        check(not config.get(key), key, config.get(key), "false or missing: only plain LoRA is read")
    check(isinstance(config.get("r"), int) and config["r"] > 0, "r", config.get("r"), "a positive integer")
    number("lora_alpha", config.get("lora_alpha"))
    for name, value in _alphas(config).items():
        number(f"alpha_pattern.{name}", value)
    return config


def _alphas(config: JsonTree) -> Mapping[str, object]:
    pattern = config.get("alpha_pattern") or {}
    check(isinstance(pattern, dict), "alpha_pattern", pattern, "an object")
    return pattern


def _scale(config: JsonTree, module: str, rank: int) -> float:
    """alpha / r, or alpha / sqrt(r) with rsLoRA; a module may have an alpha of its own."""
    own = [value for pattern, value in _alphas(config).items() if re.fullmatch(rf"(.*\.)?({pattern})", module)]
    alpha = number("lora_alpha", own[0] if own else config["lora_alpha"])
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)


def _fit(a: Tensor, b: Tensor) -> bool:
    return len(a.shape) == len(b.shape) == 2 and a.shape[0] == b.shape[1]
