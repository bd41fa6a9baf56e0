"""What the benchmark prints and writes."""

import datetime as dt
import importlib.metadata
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import matplotlib.pyplot as plt

from owl3_jax.config import DType, ModelConfig
from owl3_jax.flops import prefill_flops
from owl3_jax.host.files import write_text
from owl3_jax.host.processor import instructions, processor_name

from .floors import decode_bytes
from .measure import Measurement

_INSTRUCTION_SETS = {"amx_tile": "AMX", "avx512f": "AVX-512", "avx2": "AVX2", "avx": "AVX"}  # flag and name, the widest first

_PHASES = ("vision", "prefill", "decode")


def make_report(
    settings: dict[str, Any],
    config: ModelConfig,
    dtype: DType,
    flops_per_s: float,
    measurements: Sequence[Measurement],
    batch: dict,
) -> dict[str, Any]:
    """Everything, as JSON can hold it; times in seconds."""
    versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "torch")}
    return {
        "settings": settings,
        "date": dt.date.today().isoformat(),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}, {_processor()}",
        "versions": versions,
        "flops_per_s": flops_per_s,
        "images": [_row(m, config, dtype, flops_per_s) for m in measurements],
        "batch": batch,
    }


def _processor() -> str:
    """Its name, cores and instruction sets, on which the rate of products depends."""
    found = instructions()
    sets = " ".join(name for flag, name in _INSTRUCTION_SETS.items() if flag in found) or "no AVX"
    return f"{os.cpu_count()} cores of {processor_name()} ({sets})"


def _row(measurement: Measurement, config: ModelConfig, dtype: DType, flops_per_s: float) -> dict[str, Any]:
    ours = measurement.ours.medians()
    torch = measurement.torch.medians() if measurement.torch else {}
    bytes_read = decode_bytes(config, dtype, measurement.images, measurement.tokens)
    of_one = decode_bytes(config, dtype, 1, measurement.tokens_of_one)
    flops = prefill_flops(config, measurement.images, measurement.tokens)
    return {
        "images": measurement.images,
        "tokens": measurement.tokens,
        "ours": ours,
        "torch": torch,
        "ratio": {phase: torch[phase] / ours[phase] for phase in _PHASES if phase in torch and phase in ours},
        "decode_against_one": {"time": ours["decode"] / measurement.decode_of_one, "bytes": bytes_read / of_one},
        "peak_gb": measurement.peak_bytes / 1e9,
        "decode_floor": {"bytes": bytes_read, "seconds": bytes_read / measurement.bytes_per_s},
        "prefill_floor": {"flops": flops, "seconds": flops / flops_per_s},
    }


def describe(report: dict[str, Any]) -> str:
    """The tables."""
    vision = report["images"][0]["ours"].get("vision", 0.0)
    rates = [row["decode_floor"]["bytes"] / row["decode_floor"]["seconds"] / 1e9 for row in report["images"]]
    lines = [
        f"{report['device']}, {report['date']}, jax {report['versions']['jax']}, torch {report['versions']['torch']}; "
        f"memory {min(rates):.1f} to {max(rates):.1f} GB/s, products {report['flops_per_s'] / 1e9:.0f} GFLOP/s",
        "",
        "images  tokens   vision s/image   prefill s (floor)   decode ms/token (floor)   first token s   peak GB",
    ]
    for row in report["images"]:
        ours, first = row["ours"], vision * row["images"] + row["ours"]["prefill"]
        lines.append(
            f"{row['images']:6}{row['tokens']:8}{_cell(ours, 'vision', 1, 17)}"
            f"{ours['prefill']:12.3f} ({row['prefill_floor']['seconds']:.3f})"
            f"{ours['decode'] * 1e3:16.1f} ({row['decode_floor']['seconds'] * 1e3:.1f})"
            f"{first:18.1f}{row['peak_gb']:10.1f}"
        )
    if any(row["ratio"] for row in report["images"]):
        lines += ["", "PyTorch / ours   vision   prefill   decode"]
        for row in filter(lambda row: row["ratio"], report["images"]):
            lines.append(f"{row['images']:7} images{''.join(_cell(row['ratio'], phase, 1, 9, 'x') for phase in _PHASES)}")
    batch, most = report["batch"], max(report["images"], key=lambda row: row["images"])
    growth = most["decode_against_one"]
    lines += [
        "",
        f"{batch['rows']} prompts together: {batch['tokens_per_s_together']:.1f} tokens/s, one: "
        f"{batch['tokens_per_s_of_one']:.1f}, {batch['ratio']:.1f} times as many",
        f"decoding with {most['images']} images against one, in turn: {growth['time']:.2f} times the time, "
        f"{growth['bytes']:.2f} times the bytes",
    ]
    return "\n".join(lines)


def _cell(values: dict[str, float], name: str, scale: float, width: int, unit: str = "") -> str:
    return f"{values[name] * scale:.2f}{unit}".rjust(width) if name in values else "".rjust(width)


def write_report(directory: Path, report: dict[str, Any]) -> list[Path]:
    """Writes inference.json and inference.png; returns their paths."""
    directory.mkdir(parents=True, exist_ok=True)
    data, picture = directory / "inference.json", directory / "inference.png"
    write_text(data, json.dumps(report, indent=2) + "\n")
    figure = _plot(report)
    figure.savefig(picture, dpi=120)
    plt.close(figure)
    return [data, picture]


def _plot(report: dict[str, Any]) -> plt.Figure:
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for ax, phase, title in zip(
        axes, ("prefill", "decode"), ("Prefill, image features given", "Decoding a token"), strict=True
    ):
        rows = report["images"]
        ax.plot([r["images"] for r in rows], [r["ours"][phase] for r in rows], "o-", label="owl3_jax")
        ax.plot([r["images"] for r in rows], [r[f"{phase}_floor"]["seconds"] for r in rows], ":", color="grey", label="floor")
        theirs = [r for r in rows if phase in r["torch"]]
        if theirs:
            label = "official algorithm, PyTorch"
            ax.plot([r["images"] for r in theirs], [r["torch"][phase] for r in theirs], "s-", label=label)
        ax.set(xscale="log", yscale="log", xlabel="images in the prompt", ylabel="seconds", title=title)
        ax.set_xticks([r["images"] for r in rows], [str(r["images"]) for r in rows])
        ax.minorticks_off()
        ax.grid(alpha=0.3)
        ax.legend(frameon=False)
    figure.suptitle(f"{report['settings']['size']}, {report['settings']['dtype']}, {report['device']}")
    return figure
