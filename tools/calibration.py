"""The compiler's clock against steps that others have measured on TPUs: text models of published runs, with our decoder.

    python tools/calibration.py --json docs/benchmarks/calibration.json

The runs are MaxText's, from the logs in https://github.com/AI-Hypercomputer/tpu-recipes (training/trillium, read in November
2026): seconds of a step, and tokens a chip. MaxText keeps part of what the backward pass needs in the host's memory; here it is
computed again. One image of a single token in each row, seen by one layer, is what our model cannot do without.
"""

import dataclasses
import json
from pathlib import Path
from typing import NamedTuple

import tyro

from owl3_jax import sharding
from owl3_jax.config import (
    ComputeConfig,
    Config,
    DataConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    ProcessorConfig,
    Remat,
    SourceConfig,
    TrainConfig,
    VisionConfig,
)
from owl3_jax.host.files import write_text
from owl3_jax.tpu.compiled import compile_for
from owl3_jax.tpu.programs import train
from owl3_jax.tpu.report import Report, make_report
from owl3_jax.tpu.topology import get_topology
from owl3_jax.training.profile import RECOMPUTED

_PIXEL = VisionConfig(
    hidden_size=128, intermediate_size=128, num_hidden_layers=2, num_attention_heads=1, image_size=14, patch_size=14
)


class Run(NamedTuple):
    """A measured run."""

    name: str
    layers: int
    width: int
    mlp: int
    heads: int
    words: int
    topology: str
    rows: int  # on a chip
    tokens: int  # of a row
    seconds: float  # of a step, as measured
    remat: Remat  # ours, as are the microbatches
    microbatches: int


RUNS = (
    Run("Llama 3.1 8B", 32, 4096, 14336, 32, 128_256, "v6e:2x4", 3, 8192, 3.416, "full", 1),
    Run("Llama 2 70B", 80, 8192, 28672, 64, 32_000, "v6e:16x16", 4, 4096, 17.373, "full", 2),
    Run("Llama 3.1 70B", 80, 8192, 28672, 64, 128_256, "v6e:16x16", 5, 8192, 42.656, "full", 5),
)


@dataclasses.dataclass(frozen=True)
class Flags:
    """Compiles published runs, and prints what the clock expects beside what was measured."""

    only: str = ""  # runs with this in their name
    json: Path | None = None  # write the reports; those in the file of runs that are left out stay


def main() -> None:
    """Compiles, and prints the table."""
    flags = tyro.cli(Flags)
    reports: dict[str, Report] = json.loads(flags.json.read_text()) if flags.json and flags.json.exists() else {}
    for run in RUNS:
        if flags.only in run.name:
            reports[run.name] = _compile(run)
            if flags.json:
                write_text(flags.json, json.dumps(reports, indent=1) + "\n")
    print(table(reports))


def _compile(run: Run) -> Report:
    topology = get_topology(run.topology)
    config = _config(run, topology.chips)
    mesh = sharding.make_mesh(config.mesh, topology.devices)
    return make_report(compile_for(train(config, mesh), topology, print), topology, mesh)


def _config(run: Run, chips: int) -> Config:
    model = ModelConfig(
        form="joint",
        vocab_size=run.words,
        hidden_size=run.width,
        intermediate_size=run.mlp,
        num_hidden_layers=run.layers,
        num_attention_heads=run.heads,
        num_key_value_heads=8,
        hyper_layers=(1,),
        max_position_embeddings=run.tokens,
        vision=_PIXEL,
    )
    return Config(
        model=model,
        compute=ComputeConfig(dtype="bfloat16", param_dtype="float32", remat=run.remat, vocab_multiple=128),
        mesh=MeshConfig(data=1, fsdp=-1),
        processor=ProcessorConfig(tokenizer="digits"),
        data=DataConfig(
            sources=(SourceConfig("synthetic"),), rows=run.rows * chips, tokens_per_row=run.tokens, images_per_row=1
        ),
        optimizer=OptimizerConfig(),
        train=TrainConfig(microbatches=run.microbatches),
    )


def table(reports: dict[str, Report]) -> str:
    """One line for each run that was compiled."""
    lines = [
        "| run | chips | tokens a chip | measured | by the clock | of it | computed again | without that, of it "
        "| MFU, measured | MFU, by the clock |",
        "|---" * 10 + "|",
    ]
    for run in RUNS:
        if report := reports.get(run.name):
            seconds, mfu = report["clock"]["seconds"], report["clock"]["mfu"]
            cells = [run.name, run.topology, f"{run.rows} x {run.tokens:,}", f"{run.seconds:.2f} s", f"{seconds:.2f} s"]
            again = sum(part.get(RECOMPUTED, 0.0) for part in report["clock"]["parts"].values())
            cells += [f"{seconds / run.seconds:.0%}", f"{again:.2f} s", f"{(seconds - again) / run.seconds:.0%}"]
            cells += [f"{mfu * seconds / run.seconds:.1%}", f"{mfu:.1%}"]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
