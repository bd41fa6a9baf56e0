"""Measures inference with random weights in the real shapes, or how fast training data is read.

    python tools/benchmark.py inference --size 1b --images 1 8 64 256 1024 --against-torch --out docs/benchmarks/1b

For each number of images: seconds an image in the vision tower, seconds of prefill with the image features given,
milliseconds a token of decoding, peak memory; growth with the number of images; the two floors (bytes that a decoding step
reads over memory bandwidth measured between the rounds, FLOPs of a prefill over measured matmul rate).
With `--against-torch`, the official algorithm in plain PyTorch (`tools/torch_baseline`) runs in turn with ours on the same
weights and inputs, and ratios are printed. Medians of `--repeats` runs. JSON and a plot go to
`--out`. docs/inference.md shows the output.

    python tools/benchmark.py data --folder /tmp/data

Images and clips a second of the training iterator beside what Pillow and PyAV do alone in as many processes, the rate of
`owl3 data check`, and memory over many samples.

    python tools/benchmark.py training --folder /tmp/training

What checkpoints add to the time of a step, the share of time in which steps wait for data, the cost of agreeing on when to
stop, and memory, open files and threads over many steps.

    python tools/benchmark.py evaluation

Questions a second of `owl3 eval` beside a loop of single questions, and the time of a sweep over numbers of frames beside that
of the largest alone.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Literal

import data_benchmark
import evaluation_benchmark
import training_benchmark
import tyro
from inference_benchmark import (
    Ours,
    Settings,
    Torch,
    describe,
    make_report,
    measure,
    measure_batch,
    most_tokens,
    torch_tensors,
    write_report,
)
from roofline import measure_matmul_rate, measure_memory_bandwidth

from owl3_jax.config import DType
from owl3_jax.released import NAMED_SIZES, Size

SIZES: dict[str, Size] = {"1b": "1b-241014", "2b": "2b-241014", "7b": "7b-240728", "7b-joint": "7b-241101"}


@dataclasses.dataclass(frozen=True)
class Inference:
    """Measures vision tower, prefill and decoding."""

    size: Literal["1b", "2b", "7b", "7b-joint"] = "1b"
    images: tuple[int, ...] = (1, 8, 64, 256, 1024)  # images in the prompt
    against_torch: bool = False  # run PyTorch in turn with ours
    torch_images: int = 256  # most images that PyTorch runs on
    torch_gqa: bool = False  # let PyTorch share keys among query heads, which the official code does not
    repeats: int = 5  # runs, of which the median is reported
    batch: int = 8  # prompts of one image that are decoded together
    vision_batch_size: int = 1  # images that the vision tower takes at once
    dtype: DType = "float32"
    out: Path | None = None  # where to put inference.json and inference.png


@dataclasses.dataclass(frozen=True)
class Data:
    """Measures how fast training data is read."""

    folder: Path  # where files are written that are read
    images: int = 640  # JPEGs
    clips: int = 32  # H.264 files
    records: int = 10_000  # that `owl3 data check` reads; 0: it is left out
    samples: int = 20_000  # over which memory is watched; 0: it is left out
    repeats: int = 3  # runs, of which the median is reported


@dataclasses.dataclass(frozen=True)
class Training:
    """Measures what training costs beside its steps."""

    folder: Path  # where runs are written
    repeats: int = 3  # runs with and without checkpoints, in turn
    steps: int = 10_000  # over which memory is watched; 0: it is left out
    width: int = 512  # of the model that is saved


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Measures the evaluation's batches and its sweep over numbers of frames."""

    checkpoint: str = "digits"
    questions: int = 256  # about 1, 2, 4 and 8 digits
    clips: int = 16  # of 64 frames
    repeats: int = 3  # runs, of which the median is reported


def main() -> None:
    """Runs the benchmark that the command line names."""
    flags = tyro.extras.subcommand_cli_from_dict(
        {"inference": Inference, "data": Data, "training": Training, "evaluation": Evaluation}, description=__doc__
    )
    try:
        if isinstance(flags, Data):
            print(data_benchmark.describe(data_benchmark.measure(**vars(flags))))
        elif isinstance(flags, Training):
            print(training_benchmark.describe(training_benchmark.measure(**vars(flags))))
        elif isinstance(flags, Evaluation):
            print(evaluation_benchmark.describe(evaluation_benchmark.measure(**vars(flags))))
        else:
            inference(flags)
    except (ValueError, RuntimeError) as error:
        sys.exit(f"error: {error}")


def inference(flags: Inference) -> None:
    """Measures, prints, and writes."""
    config = NAMED_SIZES[SIZES[flags.size]]
    flops_per_s = measure_matmul_rate(flags.dtype)
    settings = Settings(config, flags.dtype, flags.vision_batch_size, most_tokens(flags.repeats))
    ours = Ours(settings)
    torch = torch_side(settings, ours, repeat_keys=not flags.torch_gqa) if flags.against_torch else None
    measurements = []
    for images in flags.images:
        other = torch if images <= flags.torch_images else None
        measurements.append(measure(images, ours, other, flags.repeats, measure_memory_bandwidth))
        print(measurements[-1].line(), file=sys.stderr, flush=True)
    batch = measure_batch(ours, flags.batch, flags.repeats)
    report = make_report(dataclasses.asdict(flags) | {"out": None}, config, flags.dtype, flops_per_s, measurements, batch)
    print(describe(report))
    for path in write_report(flags.out, report) if flags.out else ():
        print(path)


def torch_side(settings: Settings, ours: Ours, *, repeat_keys: bool) -> Torch:
    """PyTorch's side, with the weights of ours."""
    from torch_baseline import TorchOwl3  # torch is there for tests and comparisons only

    tensors = torch_tensors(ours.official_tensors(), settings.dtype)
    return Torch(settings, TorchOwl3(settings.config, tensors, repeat_keys=repeat_keys))


if __name__ == "__main__":
    main()
