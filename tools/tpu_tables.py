"""Makes the tables of docs/tpu.md by compiling for TPUs.

    python tools/tpu_tables.py

Numbers go to docs/benchmarks/tpu.json, one report of `owl3 compile` for each program; then the tables between the
markers of docs/tpu.md are written from there. Programs already in the file are not compiled again. All of them take two hours
on two cores; `--only "stage 1, 7b"` or `--only "400 images"` compiles a part, again if it is there already.
"""

import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import tyro

from owl3_jax.config import Remat
from owl3_jax.host.files import write_text
from owl3_jax.inference import buckets
from owl3_jax.released import Size
from owl3_jax.sharding import MeshPreset
from owl3_jax.tpu.programs import Prompt

ROOT = Path(__file__).parents[1]
SIZES: dict[str, Size] = {"7b": "7b-240728", "2b": "2b-241014", "1b": "1b-241014"}
Reports = dict[str, Any]


class Way(NamedTuple):
    """How a batch is divided."""

    mesh: MeshPreset
    remat: Remat
    microbatches: int


# By stage, size and topology: the fastest ways, by the compiler's clock, of those that were tried and fit. What configs/ has
# fits everywhere, too.
WAYS: dict[tuple[int, str], dict[str, Way]] = {
    (1, "7b"): {
        "v5e:16x16": Way("fsdp32", "dots", 2),
        "v6e:16x16": Way("fsdp32", "dots", 1),
        "v5p:4x4x8": Way("fsdp16", "dots", 1),
        "v4:4x4x8": Way("fsdp32", "dots", 2),
    },
    (3, "7b"): {
        "v5e:16x16": Way("fsdp32", "minimal", 2),
        "v6e:16x16": Way("fsdp32", "minimal", 1),
        "v5p:4x4x8": Way("fsdp16", "dots", 2),
        "v4:4x4x8": Way("fsdp32", "dots", 8),
        "tpu7x:4x4x8": Way("fsdp16", "dots", 2),
    },
    (3, "2b"): {"v5e:16x16": Way("fsdp32", "dots", 4), "v5p:4x4x8": Way("fsdp16", "dots", 1)},
    (3, "1b"): {"v5e:16x16": Way("fsdp16", "dots", 1), "v6e:16x16": Way("fsdp16", "dots", 1)},
}


class Case(NamedTuple):
    """One row of a table, made of one or more calls of tools/compile_tpu.py."""

    name: str
    arguments: tuple[str, ...]
    programs: tuple[str, ...] = ("train",)


def _stage(stage: int, size: str, topology: str, way: Way) -> Case:
    policy = (f"--config.compute.remat={way.remat}", f"--config.train.microbatches={way.microbatches}")
    config = ("--config", f"configs/stage{stage}.py:{SIZES[size]}", "--topology", topology, "--mesh", way.mesh)
    return Case(f"stage {stage}, {size} on {topology}", (*config, *policy))


STAGES = tuple(_stage(stage, size, topology, way) for (stage, size), ways in WAYS.items() for topology, way in ways.items())
_ANSWERS = ("encode", "store", "prefill", "decode")
PROMPTS = tuple(
    Case(
        f"{images} images on {topology}",
        ("--config", "configs/released.py:7b-240728", "--topology", topology, "--images", str(images), *mesh),
        _ANSWERS,
    )
    for images, topology, mesh in (
        (400, "v5e:2x2", ("--config.mesh.fsdp=1", "--config.mesh.tensor=4")),
        (1024, "v5e:4x4", ("--config.mesh.fsdp=1", "--config.mesh.tensor=4", "--config.mesh.context=4")),
        (4096, "v5p:1x1x1", ("--config.mesh.fsdp=1",)),
    )
)


_ONE_CHIP, _FOUR_CHIPS = ("--config.mesh.fsdp=1",), ("--config.mesh.fsdp=1", "--config.mesh.tensor=4")
TIMES = tuple(
    Case(
        f"time of {images} images on {topology}",
        ("--config", "configs/released.py:7b-240728", "--topology", topology, "--images", str(images), *mesh),
        _ANSWERS,
    )
    for topology, mesh in (("v5e:2x2", _FOUR_CHIPS), ("v6e:2x2", _FOUR_CHIPS), ("v5p:1x1x1", _ONE_CHIP))
    for images in (1, 100, 200, 400, 1024)
)
PAPER = {100: "1.06 s", 200: "1.97 s", 400: "3.95 s"}  # first token on an A100, arXiv 2408.04840


@dataclasses.dataclass(frozen=True)
class Flags:
    """Compiles what is missing in the tables of docs/tpu.md, and writes them."""

    only: str = ""  # compile only programs with this in their name, again if they are in the file already
    reports: Path = ROOT / "docs/benchmarks/tpu.json"
    page: Path = ROOT / "docs/tpu.md"


def main() -> None:
    """Compiles, and writes the tables."""
    flags = tyro.cli(Flags)
    reports: Reports = json.loads(flags.reports.read_text()) if flags.reports.exists() else {}
    for case in (*STAGES, *PROMPTS, *TIMES):
        for program in case.programs:
            name = f"{case.name}: {program}"
            if flags.only in name if flags.only else name not in reports:
                reports[name] = compile_one(case, program)
                write_text(flags.reports, json.dumps(reports, indent=1) + "\n")
    tables = {"stages": stages_table(reports), "prompts": prompts_table(reports), "times": times_table(reports)}
    write_text(flags.page, fill(flags.page.read_text(), tables))


def compile_one(case: Case, program: str) -> Reports:
    """The report of tools/compile_tpu.py, run as a process of its own, which frees its memory when it ends."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "report.json"
        command = [sys.executable, "tools/compile_tpu.py", *case.arguments, "--program", program, "--json", str(file)]
        print(" ".join(command[1:]), file=sys.stderr, flush=True)
        done = subprocess.run(command, cwd=ROOT, check=False, stdout=subprocess.DEVNULL)
        if done.returncode not in (0, 3):  # 3: does not fit
            sys.exit(f"error: that ended with code {done.returncode}")
        report: Reports = json.loads(file.read_text())
        return report


def stages_table(reports: Reports) -> str:
    """One line for each stage, model and topology."""
    heads = ["run", "mesh", "remat, microbatches", "fits", "peak GiB of", "a step, by the clock", "MFU, by the clock"]
    heads += ["a step, at least", "bound by", "MFU, at most", "compiling"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for case in STAGES:
        if report := reports.get(f"{case.name}: train"):
            policy = f"{report['remat']}, {report['microbatches']}"
            lines.append(f"| {case.name} | {_mesh(report)} | {policy} | {_memory(report)} | {_time(report)} |")
    return "\n".join(lines)


def prompts_table(reports: Reports) -> str:
    """One line for each number of images."""
    lines = ["| prompt | mesh | " + " | ".join(f"{name}, GiB" for name in _ANSWERS) + " | of |", "|---" * 7 + "|"]
    for case in PROMPTS:
        of_case = [reports[name] for program in _ANSWERS if (name := f"{case.name}: {program}") in reports]
        if len(of_case) == len(_ANSWERS):
            peaks = " | ".join(f"{report['peak_gib']:.1f}" for report in of_case)
            lines.append(f"| {case.name} | {_mesh(of_case[0])} | {peaks} | {of_case[0]['available_gib']:.1f} |")
    return "\n".join(lines)


def times_table(reports: Reports) -> str:
    """One line for each topology and number of images: seconds until the first token, and of each further one, by the clock."""
    heads = ["images", "topology", "vision, s", "text, s", "first token, s", "paper, A100", "a token, ms", "HBM, at least, ms"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for case in TIMES:
        of_case = {program: reports.get(f"{case.name}: {program}") for program in _ANSWERS}
        if all(report and report["fits"] for report in of_case.values()):
            images, topology = case.name.removeprefix("time of ").split(" images on ")
            vision, text, token, floor = _answer_times(of_case, int(images))
            first = f"{vision + text + token:.2f}"
            cells = [images, topology, f"{vision:.2f}", f"{text:.3f}", first, PAPER.get(int(images), ""), f"{1e3 * token:.1f}"]
            lines.append("| " + " | ".join([*cells, f"{1e3 * floor:.1f}"]) + " |")
    return "\n".join(lines)


def _answer_times(of_case: Reports, images: int) -> tuple[float, float, float, float]:
    """Seconds of the vision tower and the image cache, of the prompt's text, of a token; and of that by HBM's bandwidth.

    All chunks of the prompt are taken to last as long as the last one, which has the most text before it.
    """
    seconds = {program: report["clock"]["seconds"] for program, report in of_case.items()}
    at_once, tokens = int(of_case["encode"]["what"].split()[0]), Prompt.with_images(images).tokens
    batches, chunks = -(-images // at_once), -(-tokens // buckets.PREFILL_CHUNK)
    vision = batches * (seconds["encode"] + seconds["store"])
    return vision, chunks * seconds["prefill"], seconds["decode"], of_case["decode"]["seconds_at_least"]["HBM"]


def _mesh(report: Reports) -> str:
    return " x ".join(f"{name} {size}" for name, size in report["mesh"].items() if size > 1) or "one chip"


def _memory(report: Reports) -> str:
    return f"{'yes' if report['fits'] else '**no**'} | {report['peak_gib']:.1f} of {report['available_gib']:.1f}"


def _time(report: Reports) -> str:
    if not report["fits"]:
        return "| | | | |"
    clock = report.get("clock")
    by_clock = f"{clock['seconds']:.2f} s | {clock['mfu']:.1%}" if clock else " | "
    seconds, compiling = report["seconds_at_least"], report["compile_seconds"]["cpu"]
    bound = f"{report['step_seconds_at_least']:.2f} s | {max(seconds, key=seconds.get)}"
    return f"{by_clock} | {bound} | {report['mfu_at_most']:.0%} | {compiling:.0f} s"


def fill(page: str, tables: Mapping[str, str]) -> str:
    """The page with each table between `<!-- NAME -->` and `<!-- end -->`."""
    for name, table in tables.items():
        begin, end = f"<!-- {name} -->\n", "<!-- end -->"
        before, found, rest = page.partition(begin)
        _, closed, after = rest.partition(end)
        if not (found and closed):
            sys.exit(f"error: the page has no place for the table {name!r}: add <!-- {name} --> and {end}")
        page = f"{before}{begin}{table}\n{end}{after}"
    return page


if __name__ == "__main__":
    main()
