"""Kills an evaluation of 500 questions again and again, and compares what it ends with to an undisturbed one.

python tools/kill_evaluation.py [--kills 30] [--seed 0]

Every third kill comes at a random moment of a run, the others shortly after new answers. Exits with 1 if an answer was lost or
asked twice, or the files differ.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

_QUESTIONS = 500
_SETTINGS = {
    "exact-match-images": (1, 2, 4, 8),
    "rows-per-batch": (8,),
    "vision-batch-size": (64,),
    "feature-cache-gb": (0,),
}
_NEW_ANSWERS = (1, 8, 9, 40)  # a batch has 8


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a line for each kill, and the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder) / "whole", Path(folder) / "killed"
        began = time.monotonic()
        _start(whole).wait()
        seconds = time.monotonic() - began
        print(f"undisturbed: {_answers(whole)} answers in {seconds:.1f} s")
        kills = _kill(killed, flags.kills, random.Random(flags.seed), seconds)
        _start(killed).wait()
        problems = list(_problems(whole, killed))
    print("; ".join(problems) or f"{kills} kills: {_QUESTIONS} answers, none lost or asked twice; samples and scores are equal")
    sys.exit(bool(problems))


def _kill(folder: Path, kills: int, rng: random.Random, seconds: float) -> int:
    """Kills runs until there were so many kills, or one has ended before its own."""
    for number in range(1, kills + 1):
        process, before = _start(folder), _answers(folder)
        if number % 3 == 1:
            time.sleep(rng.uniform(0, 0.6 * seconds))
        else:
            wanted = before + rng.choice(_NEW_ANSWERS)
            while _answers(folder) < wanted and process.poll() is None:
                time.sleep(0.002)
            time.sleep(rng.uniform(0, 0.3))
        if process.poll() is not None:
            return number - 1
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        print(f"kill {number}: {_answers(folder)} of {_QUESTIONS} answers", flush=True)
    return kills


def _start(folder: Path) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "owl3_jax", "eval", "--checkpoint", "digits", "--tasks", "digits_exact"]
    command += ["--limit", str(_QUESTIONS), "--output", str(folder)]
    for name, values in _SETTINGS.items():
        command += [f"--config.eval.{name}", *map(str, values)]
    return subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _answers(folder: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in folder.glob("answers-*.jsonl"))


def _problems(whole: Path, killed: Path) -> list[str]:
    problems = []
    for name in ("samples.jsonl", "scores.json"):
        if (whole / name).read_bytes() != (killed / name).read_bytes():
            problems.append(f"{name} differs")
    (path,) = killed.glob("answers-*.jsonl")
    ids = [json.loads(line)["id"] for line in path.read_text().splitlines()]
    if len(ids) != _QUESTIONS or len(set(ids)) != _QUESTIONS:
        problems.append(f"{len(ids)} answers to {len(set(ids))} questions")
    return problems


if __name__ == "__main__":
    main()
