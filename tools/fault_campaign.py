"""Disturbs training runs of several processes in every way that long runs meet, and compares how they end.

    python tools/fault_campaign.py --runs 60 [--seed 0] [--processes 2] [--only damage]

Each run trains a small model on digits with four CPU devices, split over 2 or 4 processes that are started again by the same
commands until all of them end with 0, as a supervisor does. Something is done to it at a random moment, sometimes to its
second life too. In the end its parameters must be those of an undisturbed run, bit for bit, and so must the losses that it has
reported. Prints a line for each run, a table in the end, and exits with 1 if one differs, hangs, or ends with an exit status
that docs/training.md does not name.
"""

import argparse
import hashlib
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from disturbed_runs import DEVICES, SMALL, STEPS, VALIDATED, Life, Place, write_photographs
from faults import FAULTS, HUNG_LOADER, Fault, bring_back

from owl3_jax.convert.stored import open_stored
from owl3_jax.host.lifeline import LOST

_MOST_LIVES = 8
_SECOND_FAULT = 0.25  # share of runs


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the command line, and runs the campaign."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=60)
    parser.add_argument("--skip", type=int, default=0, help="of them, the first ones, which were done before")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, choices=(1, 2, 4), help="of each run; by default 2 and 4 in turn")
    parser.add_argument("--only", nargs="+", choices=[fault.name for fault in FAULTS], help="these faults alone")
    parser.add_argument("--faults", type=int, help="of each run, one in each life; by default one, and sometimes another")
    flags = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="owl3-faults-") as folder:
        place = Place(Path(folder))
        write_photographs(place.photographs)
        runs = range(flags.skip, flags.runs)
        results = list(_campaign(place, runs, flags.seed, flags.processes, flags.only, flags.faults))
    _print_table(results)
    failed = sum(not is_good for _, is_good in results)
    print(f"{len(results) - failed} of {len(results)} runs ended as undisturbed ones do", flush=True)
    sys.exit(bool(failed))


def _campaign(
    place: Place, runs: range, seed: int, processes: int | None, only: Sequence[str] | None, several: int | None
) -> Iterator[tuple[list[str], bool]]:
    """The faults of each run, and whether it ended well."""
    faults = [fault for fault in FAULTS if only is None or fault.name in only]
    straight: dict[int, str] = {}
    for number in runs:
        count = processes or (2, 4)[number % 2]
        if count not in straight:
            straight[count] = _undisturbed(place, count)
        rng = random.Random(f"{seed} {number}")
        # Every fault in turn, for 2 and for 4 processes.
        first = (several or 1) * (number if processes else number // 2)
        chosen = [faults[index % len(faults)] for index in range(first, first + (several or 1))]
        # One needs a run that has no data yet; after another there may be nothing left to disturb.
        chosen.sort(key=lambda fault: ("kill in data", fault.name, "kill in end").index(fault.name))
        if several is None and rng.random() < _SECOND_FAULT:
            chosen.append(rng.choice(faults))
        began = time.monotonic()
        workdir = place.root / f"run-{number}"
        said, problem = _disturbed(place, workdir, count, chosen, rng)
        problem = problem or ("" if _result(workdir) == straight[count] else "DIFFERS")
        shutil.rmtree(workdir, ignore_errors=True)
        seconds = time.monotonic() - began
        done, ended = "; then ".join(said), problem or "bit-identical"
        print(f"run {number + 1}/{runs.stop}  {count} processes  {done}  {ended}  {seconds:.0f} s", flush=True)
        yield [fault.name for fault in chosen[: len(said)]], not problem


def _undisturbed(place: Place, processes: int) -> str:
    workdir = place.root / f"straight-{processes}"
    began = time.monotonic()
    life = _disturbable(place, workdir, processes, place.root / "data", 0)
    statuses = life.end()
    if any(status != 0 for status in statuses):
        sys.exit(f"error: the undisturbed run ended with {_named(statuses)}:\n{''.join(life.lines)}")
    print(f"undisturbed  {processes} processes  {time.monotonic() - began:.0f} s", flush=True)
    return _result(workdir)


def _disturbable(place: Place, workdir: Path, processes: int, data: Path, workers: int) -> Life:
    sources = {
        "data.sources": ("digits", place.photographs / "train.jsonl"),
        "validation.sources": (place.photographs / "heldout.jsonl",),
    }
    own = {"data.data-dir": data, "data.workers": workers}
    return Life(place, workdir, processes, DEVICES // processes, {**SMALL, **VALIDATED, **sources, **own})


def _disturbed(place: Place, workdir: Path, processes: int, faults: list[Fault], rng: random.Random) -> tuple[list[str], str]:
    """What was done in each life, and what went wrong beyond it."""
    said: list[str] = []
    data = place.root / "data"
    if any(fault.name == "kill in data" for fault in faults):
        data = place.root / f"data-{workdir.name}"  # which this run has to build
    for number in range(_MOST_LIVES):
        inflicted = number < len(faults)
        needs_loader = inflicted and faults[number].name == HUNG_LOADER
        life = _disturbable(place, workdir, processes, data, workers=1 if needs_loader else rng.choice((0, 0, 0, 1)))
        try:
            if inflicted:
                said.append(faults[number].inflict(life, place, rng))
        finally:
            statuses = life.end()
            bring_back(place)
        said[-1] += f" [{_named(statuses)}]"
        if not inflicted and any(status not in (0, LOST) for status in statuses):  # 75: a starved process looks like a hung one
            return said, f"ENDED WITH {_named(statuses)} by itself: {''.join(life.lines[-3:])}"
        if unexpected := [status for status in statuses if status not in _EXPECTED]:
            return said, f"ENDED WITH {_named(unexpected)}, which no supervisor knows"
        if all(status == 0 for status in statuses) and any(line.startswith("finished") for line in life.lines):
            return said, ""
    return said, f"NOT FINISHED after {_MOST_LIVES} lives"


# Of killed processes; of those that lost another one, where JAX aborts sometimes before the lifeline ends them; of those that
# cannot go on. After a signal a supervisor starts them again, as after 75.
_EXPECTED = (0, -signal.SIGKILL, -signal.SIGTERM, LOST, -signal.SIGABRT, 1)


def _named(statuses: Sequence[int | None]) -> str:
    return " ".join("hangs" if status is None else str(status) for status in statuses)


def _result(workdir: Path) -> str:
    """A digest of the last parameters, and of the losses that were reported for each step."""
    digest = hashlib.sha256()
    stored = open_stored(workdir, step=STEPS)
    for path in sorted(stored.parameters):
        digest.update(path.encode() + np.ascontiguousarray(stored.parameters[path].read()).tobytes())
    for line in (workdir / "metrics.jsonl").read_text().splitlines():
        report = json.loads(line)
        digest.update(repr([report.get(name) for name in ("step", "loss", "grad_norm", "heldout/loss")]).encode())
    return digest.hexdigest()


def _print_table(results: Sequence[tuple[list[str], bool]]) -> None:
    runs, good = Counter[str](), Counter[str]()
    for faults, is_good in results:
        for name in faults:
            runs[name] += 1
            good[name] += is_good
    print(f"\n{'what was done':<20}{'runs':>6}{'ended as undisturbed':>24}")
    for fault in FAULTS:
        if runs[fault.name]:
            print(f"{fault.name:<20}{runs[fault.name]:>6}{good[fault.name]:>24}")


if __name__ == "__main__":
    main()
