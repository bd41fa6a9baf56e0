"""Reads all records of sources with their images and videos, and reports what training would trip over.

    owl3 data check train.jsonl extra.json --config configs/finetune.py --config.start.checkpoint DIR \\
        --json report.json --html report.html

A check that is stopped goes on where it was when the same command is given again.
"""

import dataclasses
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import tyro

from owl3_jax.config import Config, ConfigError, JsonTree, SourceConfig, StartConfig
from owl3_jax.data.check.forecast import forecast_epoch
from owl3_jax.data.check.page import render_page
from owl3_jax.data.check.record import Checked, Checker
from owl3_jax.data.check.report import Found, make_report, problems_of
from owl3_jax.data.check.run import CheckError, check_records
from owl3_jax.data.pipeline import mixture_weights
from owl3_jax.data.samples import for_source
from owl3_jax.data.sources import locations_of, open_source
from owl3_jax.formats.errors import CheckpointError
from owl3_jax.host import command_line
from owl3_jax.host.files import unwritable, write_text
from owl3_jax.host.progress import SECONDS_BETWEEN_LINES, Progress
from owl3_jax.training.processor import make_processor
from owl3_jax.training.start import resolve_start

_SHOWN = 10  # problems that are printed


@dataclasses.dataclass(frozen=True)
class Flags:
    """Reads all records of sources with their images and videos, and reports what training would trip over.

    Exits with code 1 when training would skip a record, or end at one. Rows, tokenizer and processor are those of --config.
    """

    sources: tyro.conf.Positional[tuple[SourceConfig, ...]] = ()  # by default those of the config
    json: Path | None = None  # the report, with every problem
    html: Path | None = None  # the same as a page, with samples as the model sees them
    held_out: tuple[SourceConfig, ...] = ()  # sources for evaluation: training must not have their images
    workers: Annotated[int, tyro.conf.arg(help_behavior_hint="(default: all cores)")] = 0  # processes


def main(argv: Sequence[str] | None = None) -> None:
    """Checks what the command line names."""
    config, flags = command_line.parse(Flags, argv, prog="owl3 data check", needs_config=False)
    try:
        report = check(config, flags)
    except (ConfigError, CheckpointError, CheckError, OSError) as error:
        sys.exit(f"error: {error}")
    if report["skipped"]:
        sys.exit(1)


def check(config: Config, flags: Flags) -> JsonTree:
    """The check itself, under a progress bar; writes the files that are asked for, and returns the report."""
    config = _with_tokenizer(_with_sources(config, flags.sources))
    _check_outputs(flags, (*config.data.sources, *flags.held_out))
    processor = make_processor(config)
    checkers = {
        source: Checker(open_source(source, config.data), config.data, source, for_source(processor, source))
        for source in dict.fromkeys((*config.data.sources, *flags.held_out))
    }
    total = sum(len(checker.records) for checker in checkers.values())
    line = "checked {done} of {total} records"
    with Progress(total, "record", file=sys.stderr, lines_every=SECONDS_BETWEEN_LINES, line=line) as bar:
        results = check_records(list(checkers.values()), _journal(flags), flags.workers or os.cpu_count() or 1, bar.advance)
    by_source = dict(zip(checkers, results, strict=True))
    names = {source: _name(source, config.data.sources) for source in config.data.sources}
    checked = {name: by_source[source] for source, name in names.items()}
    problems = problems_of(checked, {source.path: by_source[source] for source in flags.held_out})
    sizes = {name: [(x.row_tokens, x.row_images) for x in each if x.row_tokens] for name, each in checked.items()}
    weights = mixture_weights({source: sizes[name] for source, name in names.items()})
    report = make_report(checked, problems, forecast_epoch(sizes, weights, config.data))
    _write(flags, report, {name: checkers[source] for source, name in names.items()}, checked, problems)
    _print(report, problems, flags)
    return report


def _check_outputs(flags: Flags, sources: Sequence[SourceConfig]) -> None:
    """Raises ConfigError where a report could not be written, or would replace what is to be read."""
    for name, output in (("--json", flags.json), ("--html", flags.html)):
        if output is None:
            continue
        if output.is_dir():
            raise ConfigError(f"{name} {output} is a folder; give the name of a file")
        if problem := unwritable(output.parent):
            raise ConfigError(f"{name} {output}: {problem}")
        places = (output.resolve(), *output.resolve().parents)
        for source in sources:
            if any(Path(read).resolve() in places for read in locations_of(source)):
                raise ConfigError(f"{name} {output} is in the source {source.path}; write the report elsewhere")
    if flags.json and flags.html and flags.json.resolve() == flags.html.resolve():
        raise ConfigError(f"--json and --html are the same file, {flags.json}")


def _with_sources(config: Config, sources: Sequence[SourceConfig]) -> Config:
    """The config with these sources; one that the config names too keeps the config's settings of it."""
    if not sources:
        return config
    known = {source.path: source for source in config.data.sources}
    chosen = [dataclasses.replace(known.get(source.path, source), weight=source.weight) for source in sources]
    return dataclasses.replace(config, data=dataclasses.replace(config.data, sources=tuple(chosen)))


def _with_tokenizer(config: Config) -> Config:
    if config.start.inherit and config.start.checkpoint is None:
        print(
            "no --config.start.checkpoint: tokens are counted as words, digits and punctuation marks; give the checkpoint "
            "for its own tokenizer",
            file=sys.stderr,
        )
        return dataclasses.replace(config, start=StartConfig())
    return resolve_start(config)


def _name(source: SourceConfig, sources: Sequence[SourceConfig]) -> str:
    """The path, and the split where several of its splits are there."""
    several = sum(other.path == source.path for other in sources) > 1
    return f"{source.path} ({source.split})" if several else source.path


def _journal(flags: Flags) -> Path:
    beside = flags.json or flags.html or Path("data-check.json")
    return beside.with_name(f".{beside.name}.unfinished")


def _write(
    flags: Flags,
    report: JsonTree,
    checkers: Mapping[str, Checker],
    checked: Mapping[str, Sequence[Checked]],
    problems: Sequence[Found],
) -> None:
    if flags.json:
        write_text(flags.json, json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    if flags.html:
        write_text(flags.html, render_page(report, checkers, checked, problems))


def _print(report: JsonTree, problems: Sequence[Found], flags: Flags) -> None:
    for problem in problems[:_SHOWN]:
        print(f"{problem.source} record {problem.record}: {problem.kind}: {problem.detail}")
    if len(problems) > _SHOWN:
        where = f"; {flags.json} lists them" if flags.json else "; --json lists them"
        print(f"... {len(problems) - _SHOWN} more problems{where}")
    print(f"{report['records']} records: training would skip {report['skipped']}")
    if counts := report["counts"]:
        print("  " + ", ".join(f"{kind} {count}" for kind, count in counts.items()))
    if forecast := report["forecast"]:
        print(
            f"  {forecast['steps']} steps an epoch, {forecast['samples_per_row']:.1f} samples a row, "
            f"{forecast['token_fill']:.0%} of its tokens and {forecast['image_fill']:.0%} of its images filled"
        )
