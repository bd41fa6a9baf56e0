"""The same prompt in two ways: images through hyper attention, or as tokens in the text."""

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
from jax.sharding import Mesh

from owl3_jax.config import Config, ModelConfig
from owl3_jax.flops import prefill_flops
from owl3_jax.tpu.compiled import GIB, OutOfMemory, available_bytes, compile_for
from owl3_jax.tpu.programs import Inference, Name, Prompt
from owl3_jax.tpu.topology import Topology

Row = dict[str, Any]
_WAYS = {"hyper attention": "o-", "tokens in the text": "s--"}


def compare(config: Config, mesh: Mesh, topology: Topology, images: int) -> list[Row]:
    """A row for each way."""
    prompt = Prompt.with_images(images)
    return [
        {"images": images, "way": way, **_measure(config, mesh, topology, prompt)}
        for way, prompt in zip(_WAYS, (prompt, prompt.as_text(config.model)), strict=True)
    ]


def _measure(config: Config, mesh: Mesh, topology: Topology, prompt: Prompt) -> Row:
    inference = Inference(config, mesh, prompt)
    peaks = {f"{name}_gib": _peak(inference, name, topology) / GIB * topology.chip.devices for name in ("prefill", "decode")}
    prefill = prefill_flops(config.model, prompt.images, prompt.tokens)
    decode = inference.program("decode").flops // inference.rows
    available = available_bytes(topology) / GIB * topology.chip.devices
    return {"tokens": prompt.tokens, **peaks, "available_gib": available, "prefill_flops": prefill, "decode_flops": decode}


def _peak(inference: Inference, name: Name, topology: Topology) -> float:
    """Bytes on a device, even if it has less memory."""
    try:
        return compile_for(inference.program(name), topology).peak
    except OutOfMemory as error:
        return error.needed


def describe(rows: Sequence[Row]) -> str:
    """One line for each number of images and way."""
    lines = ["images  way                    tokens  prefill GiB  decode GiB   prefill TFLOP  decode GFLOP a token"]
    lines += [
        f"{row['images']:6}  {row['way']:<19}{row['tokens']:10,}{row['prefill_gib']:13.1f}{row['decode_gib']:12.1f}"
        f"{row['prefill_flops'] / 1e12:16,.1f}{row['decode_flops'] / 1e9:22,.1f}"
        for row in rows
    ]
    return "\n".join(lines)


def draw(rows: Sequence[Row], topology: str, config: ModelConfig) -> plt.Figure:
    """Memory and operations against the number of images."""
    images = sorted({row["images"] for row in rows})
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for way, style in _WAYS.items():
        own = [row for row in rows if row["way"] == way]
        axes[0].plot(images, [max(row["prefill_gib"], row["decode_gib"]) for row in own], style, label=way)
        axes[1].plot(images, [row["prefill_flops"] / 1e12 for row in own], style, label=way)
    axes[0].axhline(rows[0]["available_gib"], color="grey", linestyle=":", label="what the chip has")
    for ax, label in zip(axes, (f"GiB on a chip of {topology}", "TFLOP of a prefill"), strict=True):
        ax.set(xscale="log", yscale="log", xlabel="images in the prompt", ylabel=label)
        ax.set_xticks(images, map(str, images))
        ax.minorticks_off()
        ax.grid(alpha=0.3)
        ax.legend(frameon=False)
    axes[0].set_yticks(gib := [16, 32, 64, 128, 256], map(str, gib))
    figure.suptitle(
        f"The same decoder ({config.num_hidden_layers} layers, width {config.hidden_size}), without the vision tower"
    )
    return figure
