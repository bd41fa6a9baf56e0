"""Asks a server for a long time, in every way and wrongly too, and checks each answer and what is left behind.

    python tools/serving_soak.py --requests 20000

Clients ask questions of all kinds about pictures of digits: 0 to 8 images, videos, histories, several answers,
log-probabilities, stop texts, streamed or not. A tenth of the requests have a fault, clients leave while they wait or while
they are answered, and decoding workers are killed. Each answer is compared with the one that the batch engine gives to the same
question alone. In the end there must be no wrong answer, no 5xx, and no page, slot or descriptor in use that was not before, or
the exit code is 1. docs/serving.md shows the output.
"""

import asyncio
import dataclasses
import json
import random
import sys
import tempfile
from pathlib import Path

import tyro
from serving_checks.live import LiveServer, live_server
from serving_checks.questions import draw_questions
from serving_checks.reference import answers_alone
from serving_checks.soak import Plan, Run, soak
from serving_checks.soak_report import summary, table, wrong

import owl3_jax
from owl3_jax.host.compilation_cache import use_compilation_cache


@dataclasses.dataclass(frozen=True)
class Flags:
    """How much is asked, and whom."""

    requests: int = 20_000
    clients: int = 32  # at the same time
    questions: int = 300  # different ones
    kill_every: int = 500  # requests between two kills of a decoding worker; 0: none
    checkpoint: str = "digits"
    dtype: str = "float32"  # of the server and of the answers that it has to give
    seed: int = 0
    url: str | None = None  # of a server of that checkpoint that runs already, with greedy sampling
    pid: int | None = None  # of that server: for its memory, its descriptors and its workers
    log: Path | None = None  # where the server's log goes; by default it is thrown away
    json: Path | None = None  # where the figures go


def main() -> None:
    """Runs it, and prints what it found."""
    flags = tyro.cli(Flags, description=__doc__)
    use_compilation_cache()
    owl = owl3_jax.from_pretrained(flags.checkpoint, dtype=flags.dtype)
    questions = draw_questions(random.Random(flags.seed), flags.questions)
    answered = list(zip(questions, answers_alone(owl, questions), strict=True))
    print(f"{len(answered)} questions have their answers", file=sys.stderr, flush=True)
    plan = Plan(Path(flags.checkpoint).name, answered, flags.requests, flags.clients, flags.kill_every, flags.seed)
    run = _run(flags, plan)
    print(table(run))
    if flags.json is not None:
        flags.json.write_text(json.dumps(summary(run), indent=1) + "\n")
    sys.exit(bool(wrong(run)))


def _run(flags: Flags, plan: Plan) -> Run:
    if flags.url is not None:
        return asyncio.run(soak(LiveServer(flags.url.rstrip("/"), flags.pid), plan))
    with tempfile.TemporaryDirectory(prefix="owl3-soak-") as folder:
        log = flags.log or Path(folder) / "server.log"
        options = ("--checkpoint", flags.checkpoint, "--dtype", flags.dtype, "--sampling", "greedy")
        with live_server(log, *options) as server:
            return asyncio.run(soak(server, plan))


if __name__ == "__main__":
    main()
