"""The paper's three stages end to end, on 64 captioned crops of real photographs, and back to the official layout.

    python tools/three_stages.py --to runs/photographs

makes a small SigLIP and a small Qwen2 directory, trains stage 1 from the two, stage 2 from stage 1 and stage 3 from stage 2 by
`owl3 train`, exports the last by `owl3 convert --to-hf`, and checks
    that stage 1 has left every tensor of SigLIP and Qwen2 as it was, bit for bit,
    that a PyTorch model in float64 computes the export's logits,
    that the export recalls the caption of each crop.
Runs and exports that are there already are not made again. Exits with 1 when a check fails. docs/training.md shows what it
prints.
"""

import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch_baseline
import tyro
from photo_crops import ASKED, Crop, crops, make_tokenizer, write_sources
from tiny_parts import write_parts

import owl3_jax
from owl3_jax.cli import main as owl3
from owl3_jax.formats.checkpoint import load_config
from owl3_jax.formats.weight_files import find_tensors
from owl3_jax.host import command_line
from owl3_jax.inference.sampling import Sampling
from owl3_jax.pretrained import Owl3Checkpoint
from owl3_jax.processing.processor import Prepared

CONFIG = Path(__file__).parents[1] / "configs" / "photographs.py"
STAGES = ("1", "2", "3")
LOGITS = 1e-4  # largest difference to PyTorch
_LOGITS_COMPARED = 8  # crops


@dataclasses.dataclass(frozen=True)
class Flags:
    """Runs the paper's three stages in small, and checks what comes out."""

    to: Path  # for parts, data, runs and the export
    steps: tuple[int, int, int] | None = None  # of each stage; those of the config by default
    plot: Path | None = None  # draw the losses and the crops


def main() -> None:
    """Makes, trains, exports and checks."""
    flags, began = tyro.cli(Flags), time.monotonic()
    siglip, qwen2, export = (flags.to / name for name in ("siglip", "qwen2", "export"))
    sources = write_sources(flags.to / "data")
    if not qwen2.exists():
        write_parts(siglip, qwen2, command_line.load_config(f"{CONFIG}:1").model, make_tokenizer())
    starts = [["--config.start.vision", siglip, "--config.start.language", qwen2]]
    starts += [["--config.start.checkpoint", flags.to / f"stage{stage}"] for stage in STAGES[:-1]]
    for number, stage in enumerate(STAGES):
        steps = [] if flags.steps is None else ["--config.train.steps", flags.steps[number]]
        where = ["--config", f"{CONFIG}:{stage}", "--workdir", flags.to / f"stage{stage}"]
        _run("train", *where, *starts[number], "--config.data.sources", *sources[stage], *steps)
    for stage, directory in (("1", flags.to / "export1"), ("3", export)):
        if not directory.exists():
            _run("convert", "--from", flags.to / f"stage{stage}", "--to", directory, "--to-hf")

    moved = _moved_tensors(flags.to / "export1", siglip, qwen2)
    print(f"tensors of SigLIP and Qwen2 that stage 1 has changed: {len(moved)} {moved[:3] or ''}")
    owl, parts = owl3_jax.from_pretrained(export), crops()
    difference = _logit_difference(owl, export, parts[:: len(parts) // _LOGITS_COMPARED])
    print(f"logits of the export, ours in float32 against PyTorch in float64: they differ by at most {difference:.1e}")
    answers = _answers(owl, parts)
    right = [answer == crop.caption for answer, crop in zip(answers, parts, strict=True)]
    for answer, crop in list(zip(answers, parts, strict=True))[:3]:
        print(f"  {crop.file}: {answer}")
    print(f"captions that are recalled exactly: {sum(right)} of {len(parts)}")
    if flags.plot:
        _draw(flags.plot, flags.to, parts, right)
    print(f"{(time.monotonic() - began) / 60:.1f} minutes")
    sys.exit(0 if not moved and difference < LOGITS and all(right) else 1)


def _run(*arguments: object) -> None:
    print(" ".join(map(str, ["owl3", *arguments])), flush=True)
    owl3([*map(str, arguments)])


def _moved_tensors(export: Path, siglip: Path, qwen2: Path) -> list[str]:
    """Names of the parts' tensors whose bits are others in the export."""
    after = find_tensors(export)
    parts = {name: tensor for name, tensor in find_tensors(siglip).items() if name in after}
    parts |= {f"language_model.{name}": tensor for name, tensor in find_tensors(qwen2).items()}
    same = lambda x, y: x.dtype == y.dtype and np.array_equal(x.view(np.uint8), y.view(np.uint8))
    return [name for name, tensor in parts.items() if not same(tensor.read(), after[name].read())]


def _logit_difference(owl: Owl3Checkpoint, export: Path, parts: Sequence[Crop]) -> float:
    """The largest one, of the last position's logits."""
    tensors = {name: torch.from_numpy(tensor.read().astype(np.float64)) for name, tensor in find_tensors(export).items()}
    reference = torch_baseline.TorchOwl3(load_config(export), tensors)

    def difference(crop: Crop) -> float:
        sample = _prompt(owl, crop).read()
        pixels = torch.from_numpy(sample.pixel_values.transpose(0, 3, 1, 2)).double() / 127.5 - 1
        starts, ids = torch.from_numpy(sample.image_starts).long(), torch.from_numpy(sample.input_ids)[None].long()
        logits, _ = reference.prefill(ids, starts, reference.encode_images(pixels))
        return float(np.abs(owl.logits(sample)[-1] - logits[0].numpy()).max())

    return max(map(difference, parts))


def _answers(owl: Owl3Checkpoint, parts: Sequence[Crop]) -> list[str]:
    answers = owl.engine.generate([_prompt(owl, crop) for crop in parts], Sampling(max_new_tokens=32))
    return [answer.text.strip() for (answer,) in answers]


def _prompt(owl: Owl3Checkpoint, crop: Crop) -> Prepared:
    return owl.processor.prepare([{"role": "user", "content": f"<|image|>\n{ASKED}"}], [crop.image], crop=False)


def _draw(path: Path, folder: Path, parts: Sequence[Crop], right: Sequence[bool]) -> None:
    """The loss of each stage, and the crops, framed green where their captions are recalled."""
    figure = plt.figure(figsize=(11, 2.6))
    grid = figure.add_gridspec(
        4, 17, width_ratios=[6, *[1] * 16], wspace=0.06, hspace=0.06, left=0.05, right=0.995, bottom=0.19, top=0.97
    )
    losses = figure.add_subplot(grid[:, 0])
    for stage in STAGES:
        reports = [json.loads(line) for line in (folder / f"stage{stage}" / "metrics.jsonl").read_text().splitlines()]
        losses.plot(*zip(*((report["step"], report["loss"]) for report in reports), strict=True), label=f"stage {stage}")
    losses.set(xlabel="step", ylabel="loss", yscale="log")
    losses.legend(frameon=False)
    losses.spines[["top", "right"]].set_visible(False)
    places = [figure.add_subplot(grid[row, column]) for row in range(4) for column in range(1, 17)]
    for place, crop, is_right in zip(places, parts, right, strict=True):
        place.imshow(crop.image.resize((64, 64)))
        place.set(xticks=[], yticks=[])
        for spine in place.spines.values():
            spine.set(color="#1a8a34" if is_right else "#cc2b2b", linewidth=2)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
