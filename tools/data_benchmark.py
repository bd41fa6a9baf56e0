"""How fast training data is read, beside what Pillow and PyAV do alone on the same cores."""

import contextlib
import functools
import io
import itertools
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.pool import Pool
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import psutil
from PIL import Image
from sklearn.datasets import load_sample_images

from owl3_jax.cli.data_check import Flags as CheckFlags
from owl3_jax.cli.data_check import check
from owl3_jax.config import Config, DataConfig, ModelConfig, ProcessorConfig, SourceConfig
from owl3_jax.data.digits.tokenizer import make_tokenizer
from owl3_jax.data.pipeline import make_train_iterator
from owl3_jax.processing.processor import Processor
from owl3_jax.processing.video_sampling import VideoSampling

SIDE, SIZE = 384, (640, 480)  # of a view; of the files
CLIP_FRAMES, CLIP_FPS, FRAMES = 200, 25, 8  # of a clip; of a sample
_EPOCHS = 4  # how often each file is read in a run
_TOKENS, _IMAGES = 512, 8  # of a row
_SAMPLING = VideoSampling(FRAMES, "middle")

Report = dict[str, Any]


class Files(NamedTuple):
    """What is read."""

    images: list[Path]
    clips: list[Path]
    image_source: Path  # ms-swift JSON Lines, one image a record
    clip_source: Path


def write_files(folder: Path, images: int, clips: int) -> Files:
    """Different JPEGs of `SIZE`, cut out of photographs, and H.264 clips that pan over one."""
    folder.mkdir(parents=True)
    photographs = [Image.fromarray(pixels).resize((1280, 960)) for pixels in load_sample_images().images]
    rng = np.random.default_rng(0)
    files = Files(
        [folder / f"{n}.jpg" for n in range(images)],
        [folder / f"{n}.mp4" for n in range(clips)],
        folder / "images.jsonl",
        folder / "clips.jsonl",
    )
    for number, path in enumerate(files.images):
        left, top = rng.integers(0, (640, 480))
        photographs[number % 2].crop((left, top, left + SIZE[0], top + SIZE[1])).save(path, quality=90)
    for number, path in enumerate(files.clips):
        _write_clip(path, np.asarray(photographs[number % 2]))
    _write_source(files.image_source, "images", files.images)
    _write_source(files.clip_source, "videos", files.clips)
    return files


def _write_clip(path: Path, photograph: np.ndarray) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=CLIP_FPS)
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        for number in range(CLIP_FRAMES):
            part = np.ascontiguousarray(photograph[number : number + SIZE[1], 3 * number : 3 * number + SIZE[0]])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(part, format="rgb24")))
        container.mux(stream.encode(None))


def _write_source(path: Path, key: str, media: Sequence[Path]) -> None:
    tag = {"images": "<image>", "videos": "<video>"}[key]
    messages = [{"role": "user", "content": f"{tag}Which digit is red?"}, {"role": "assistant", "content": "red 7"}]
    path.write_text("".join(json.dumps({"messages": messages, key: [name.name]}) + "\n" for name in media))


def measure(folder: Path, images: int, clips: int, records: int, samples: int, repeats: int) -> Report:
    """All rates, as medians of alternated runs."""
    files = write_files(folder, images, clips)
    pictures, videos = [*files.images] * _EPOCHS, [*files.clips] * _EPOCHS
    print(f"wrote {images} images and {clips} clips", file=sys.stderr, flush=True)
    cores = os.cpu_count() or 1
    rates: dict[str, Callable[[], float]] = {
        "pillow_1": functools.partial(alone, _decode_image, pictures, 1),
        "ours_thread": functools.partial(ours, files.image_source, len(pictures), 0),
        "ours_1": functools.partial(ours, files.image_source, len(pictures), 1),
        f"pillow_{cores}": functools.partial(alone, _decode_image, pictures, cores),
        f"ours_{cores}": functools.partial(ours, files.image_source, len(pictures), cores),
        "pyav_1": functools.partial(alone, _decode_clip, videos, 1),
        "ours_clips_1": functools.partial(ours, files.clip_source, len(videos), 1),
        f"pyav_{cores}": functools.partial(alone, _decode_clip, videos, cores),
        f"ours_clips_{cores}": functools.partial(ours, files.clip_source, len(videos), cores),
    }
    found: dict[str, list[float]] = {name: [] for name in rates}
    for _ in range(repeats):
        for name, rate in rates.items():
            found[name].append(rate())
            print(f"{name}: {found[name][-1]:.1f}/s", file=sys.stderr, flush=True)
    medians = {name: statistics.median(values) for name, values in found.items()}
    report: Report = {"cores": cores, "samples_per_second": medians}
    if records:
        report["check"] = _measure_check(folder, files, records, cores)
    if samples:
        report["resident_mb"] = _measure_memory(folder, samples, cores)
    return report


def alone(function: Callable[[Path], object], paths: Sequence[Path], processes: int) -> float:
    """Files a second of a library by itself, in processes that are running already."""
    pool = _pool(processes)
    pool.map(_meet, range(processes), chunksize=1)
    began = time.monotonic()
    pool.map(function, paths, chunksize=max(1, len(paths) // (8 * processes)))
    return len(paths) / (time.monotonic() - began)


@functools.cache
def _pool(processes: int) -> Pool:
    context = multiprocessing.get_context("spawn")
    return context.Pool(processes, _start, (context.Barrier(processes),))


_barriers: list[Barrier] = []  # in a process of a pool


def _start(barrier: Barrier) -> None:
    _barriers.append(barrier)


def _meet(number: int) -> None:
    """Returns when all processes of the pool are there."""
    del number
    _barriers[0].wait()


def _decode_image(path: Path) -> int:
    with Image.open(path) as image:
        return int(np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)).shape[0])


def _only_decode(path: Path) -> int:
    with Image.open(path) as image:
        return int(np.asarray(image.convert("RGB")).shape[0])


def _decode_clip(path: Path) -> int:
    """All frames up to the last that is wanted; those that are wanted become views."""
    wanted, seen = set(_SAMPLING.indices(CLIP_FRAMES, CLIP_FPS)), 0
    with av.open(str(path)) as container:
        for number, frame in enumerate(container.decode(video=0)):
            if number in wanted:
                frame.to_image().resize((SIDE, SIDE), Image.Resampling.BICUBIC)
                seen += 1
            if number == max(wanted):
                break
    return seen


def ours(source: Path, samples: int, workers: int) -> float:
    """Samples a second of the training iterator, after the first batches."""
    with _batches(source, workers) as batches:
        warm = sum(int(batch.segment_ids.max(axis=1).sum()) for batch in itertools.islice(batches, 2 + 2 * workers))
        began, read = time.monotonic(), 0
        while read < samples and warm:
            read += int(next(batches).segment_ids.max(axis=1).sum())
        return read / (time.monotonic() - began)


@contextlib.contextmanager
def _batches(source: Path, workers: int, side: int = SIDE) -> Iterator[Any]:
    processor = Processor(make_tokenizer(), side, video_sampling=_SAMPLING)
    data = DataConfig(
        sources=(SourceConfig(str(source)),),
        rows=4,
        tokens_per_row=_TOKENS,
        images_per_row=_IMAGES,
        workers=workers,
        prefetch=1,
    )
    iterator = make_train_iterator(data, processor)
    with contextlib.closing(iterator):
        yield iterator


def _measure_check(folder: Path, files: Files, records: int, cores: int) -> Report:
    """`owl3 data check` on as many records, and Pillow decoding the same files in as many processes."""
    paths = [files.images[n % len(files.images)] for n in range(records)]
    source = folder / "check.jsonl"
    lines = files.image_source.read_text().splitlines()
    varied = [json.loads(lines[n % len(lines)]) | {"id": n} for n in range(records)]
    for number, tree in enumerate(varied):  # no two records are the same
        tree["messages"][1]["content"] = f"red {number}"
    source.write_text("".join(json.dumps(tree) + "\n" for tree in varied))
    # In a process of its own, as the command is: worker processes import the main module again, which here is the benchmark.
    code = f"import data_benchmark; data_benchmark.time_check({str(source.resolve())!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, stdout=subprocess.PIPE, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    return {
        "records": found["records"],
        "problems": found["problems"],
        "records_per_second": records / found["seconds"],
        "pillow_decodes_per_second": alone(_only_decode, paths, cores),
    }


def time_check(source: str) -> None:
    """Runs `owl3 data check` on a file, and prints its seconds and counts as a line of JSON."""
    config = Config(
        model=ModelConfig(vocab_size=64),
        processor=ProcessorConfig("digits"),
        data=DataConfig(sources=(SourceConfig(source),), tokens_per_row=_TOKENS, images_per_row=_IMAGES),
    )
    began = time.monotonic()
    report = check(config, CheckFlags(json=Path(source).with_name("report.json")))
    seconds = time.monotonic() - began
    print(json.dumps({"records": report["records"], "problems": len(report["problems"]), "seconds": seconds}))


def _measure_memory(folder: Path, samples: int, workers: int) -> dict[int, float]:
    """Resident memory of this process and its workers, in MB, after numbers of samples of small images."""
    small = io.BytesIO()
    Image.fromarray(load_sample_images().images[0]).resize((96, 72)).save(small, "jpeg")
    (folder / "small.jpg").write_bytes(small.getvalue())
    _write_source(folder / "small.jsonl", "images", [folder / "small.jpg"] * 1000)
    points, found, read = [samples // 10, samples // 2, samples], {}, 0
    with _batches(folder / "small.jsonl", workers, side=56) as batches:
        for point in points:
            while read < point:
                read += int(next(batches).segment_ids.max(axis=1).sum())
            this = psutil.Process()
            found[point] = sum(each.memory_info().rss for each in (this, *this.children(recursive=True))) / 1e6
    return found


def describe(report: Report) -> str:
    """The rates and their ratios, a line each."""
    rates, cores = report["samples_per_second"], report["cores"]
    ratio = lambda name, base: f"{rates[name]:8.1f}   {rates[name] / rates[base]:.2f} of {base} ({rates[base]:.1f})"
    lines = [
        f"{SIZE[0]}x{SIZE[1]} JPEG to {SIDE}x{SIDE} in batches, images/s",
        f"  a thread           {ratio('ours_thread', 'pillow_1')}",
        f"  1 worker           {ratio('ours_1', 'pillow_1')}",
        f"  {cores} workers          {ratio(f'ours_{cores}', f'pillow_{cores}')}",
        f"  {cores} workers          {ratio(f'ours_{cores}', 'ours_1')}",
        f"{FRAMES} frames of {CLIP_FRAMES} of {SIZE[0]}x{SIZE[1]} H.264 in batches, clips/s",
        f"  1 worker           {ratio('ours_clips_1', 'pyav_1')}",
        f"  {cores} workers          {ratio(f'ours_clips_{cores}', f'pyav_{cores}')}",
    ]
    if checked := report.get("check"):
        lines += [
            f"owl3 data check: {checked['records']:,} records, {checked['problems']} problems, "
            f"{checked['records_per_second']:.1f} records/s; Pillow alone decodes "
            f"{checked['pillow_decodes_per_second']:.1f} of their images a second on {cores} cores"
        ]
    if resident := report.get("resident_mb"):
        lines += ["resident memory: " + ", ".join(f"{mb:,.0f} MB after {count:,} samples" for count, mb in resident.items())]
    return "\n".join(lines)
