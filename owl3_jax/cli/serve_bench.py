"""Loads a server with real image sequences, and says how long its users wait.

    owl3 serve-bench http://127.0.0.1:8000 --concurrency 16 --requests 64 --images-per-request 1:16 --plot load.png
    owl3 serve-bench http://127.0.0.1:8000 --rate 2 --duration 60 --slo-ttft 3 --slo-itl 0.2 --json load.json
    owl3 serve-bench http://127.0.0.1:8000 --concurrency 16 --images-per-request 1:16 --compare-sequential

The server is any that speaks OpenAI's chat API with streaming: `owl3 serve`, vLLM, SGLang. With --concurrency, each of so many
clients waits for its answer before it asks again; with --rate, clients arrive independently of each other, and latencies count
from when each should have been served, so that a server that stalls cannot hide it. Ctrl-C prints and writes what there is.
The exit code is 1 if a request failed.
"""

import asyncio
import datetime as dt
import sys
from collections.abc import Sequence

import tyro

from owl3_jax.cli.serve_bench_flags import Flags
from owl3_jax.host.files import write_text
from owl3_jax.host.progress import SECONDS_BETWEEN_LINES, Progress
from owl3_jax.serving.bench.client import Client, ServerError
from owl3_jax.serving.bench.plot import save_plot
from owl3_jax.serving.bench.report import describe, dump, make_report
from owl3_jax.serving.bench.runs import Bench, Measured, Plan

_HIDDEN = "***"


def main(argv: Sequence[str] | None = None) -> None:
    """Measures what the command line asks. Exits with 1 after a failure, with 130 when interrupted."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        flags = tyro.cli(Flags, args=argv, prog="owl3 serve-bench", description=__doc__)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    _run(flags, argv)


def _run(flags: Flags, argv: Sequence[str]) -> None:
    began, measured = dt.datetime.now().astimezone().isoformat(timespec="seconds"), Measured()
    stopped: Exception | KeyboardInterrupt | None = None
    try:
        asyncio.run(measure(flags, measured))
    except (KeyboardInterrupt, ServerError, ValueError, OSError) as error:
        stopped = error
    try:
        _tell(flags, measured, ["owl3", "serve-bench", *without_key(argv)], began, complete=stopped is None)
    except OSError as error:
        sys.exit(f"error: {error}")
    if isinstance(stopped, KeyboardInterrupt):
        sys.exit(130)
    if stopped:
        sys.exit(f"error: {stopped}")
    if not any(run.records for run in measured.runs):
        sys.exit("error: no request was due: give a longer --duration or a higher --rate")
    if not flags.allow_errors and any(True for run in measured.runs for _ in run.failures):
        sys.exit(1)


async def measure(flags: Flags, measured: Measured) -> None:
    """The measurement, under a progress bar. Raises ServerError, and ValueError and OSError of pictures and prompts."""
    plan, workload = flags.load.plan(requires_answers=not flags.allow_errors), flags.workload.workload()
    pictures = flags.workload.pictures()
    async with Client(flags.endpoint()) as client:
        model = flags.model or await client.first_model()
        with _requests_bar(plan, workload.turns) as bar:
            bench = Bench(plan, workload, pictures, flags.workload.options(model), client, bar.advance, bar.say)
            await bench.measure(measured)


def without_key(argv: Sequence[str]) -> list[str]:
    """The command line for the record, its API key hidden."""
    shown, hides = list[str](), False
    for word in argv:
        name, equals, _ = word.partition("=")
        is_key = name.replace("_", "-") == "--api-key"
        shown.append(_HIDDEN if hides else f"{name}={_HIDDEN}" if is_key and equals else word)
        hides = is_key and not equals
    return shown


def _requests_bar(plan: Plan, turns: int) -> Progress:
    total = None if plan.conversations is None else plan.conversations * turns * len(plan.legs)
    line = "{done} of {total} {unit}s"
    return Progress(total, "request", file=sys.stderr, lines_every=SECONDS_BETWEEN_LINES, line=line)


def _tell(flags: Flags, measured: Measured, command: Sequence[str], date: str, *, complete: bool) -> None:
    """Prints and writes what there is; nothing where there is nothing."""
    limits = flags.limits()
    if not any(run.records for run in measured.runs):
        return
    print("\n".join(describe(measured, limits)), flush=True)
    if flags.json:
        report = make_report(measured, limits, command=command, date=date, settings=flags.settings(), complete=complete)
        print(write_text(flags.json, dump(report)))
    if flags.plot:
        print(save_plot(flags.plot, measured, f"{measured.model} at {flags.url}, {date}"))
