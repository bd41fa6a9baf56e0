"""Attacks a server through its HTTP interface in every way that servers like it have been attacked.

    python tools/serving_attack.py

It starts `owl3 serve` with an API key, a folder and a domain of its own, and sends it hostile input: addresses that it must not
fetch from, redirects, bombs, headers that claim too much, endless and broken bodies, paths, framing that two servers could read
differently, other protocols, guessed keys, slow clients. All the while a well-behaved client goes on asking. An attack fails if
it is refused; an attack that gets another status, an answer that reveals the server's memory or files, a visit to the web
server that nothing may be fetched from, a 5xx, and a wrong or late answer of the well-behaved client make the exit code 1.
docs/serving.md shows the output.
"""

import asyncio
import dataclasses
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path

import tyro
from serving_checks.assault import Assault, assault, attacked
from serving_checks.questions import draw_picture

from owl3_jax.host.compilation_cache import use_compilation_cache


@dataclasses.dataclass(frozen=True)
class Flags:
    """What is attacked."""

    checkpoint: str = "digits"
    dtype: str = "float32"
    patience: float = 20.0  # seconds within which the well-behaved client gets its answers
    slow: bool = True  # whether to wait for the time limits of the server


def main() -> None:
    """Attacks, and prints what came of it."""
    flags = tyro.cli(Flags, description=__doc__)
    use_compilation_cache()
    options = ("--checkpoint", flags.checkpoint, "--dtype", flags.dtype, "--sampling", "greedy")
    with tempfile.TemporaryDirectory(prefix="owl3-attack-") as folder:
        picture = draw_picture(random.Random(0))
        with attacked(Path(folder), picture, *options) as server:
            found = asyncio.run(assault(server, picture, with_slow=flags.slow, patience=flags.patience))
    _print(found)
    sys.exit(not found.is_withstood)


def _print(found: Assault) -> None:
    print("| group | attack | status | code | s | |\n|---|---|---|---|---:|---|")
    for attack, statuses, code, seconds, problem in sorted(found.verdicts, key=lambda verdict: verdict.attack.group):
        shown = ", ".join(f"{'closed' if status == 0 else status}" for status in dict.fromkeys(statuses))
        name = attack.name.replace("|", "\\|")
        print(f"| {attack.group} | {name} | {shown} | {code} | {seconds:.1f} | {problem or 'ok'} |")
    groups = Counter(verdict.attack.group for verdict in found.verdicts)
    bystander = found.bystander
    print(f"\n{len(found.verdicts)} attacks: {', '.join(f'{count} {group}' for group, count in groups.items())}")
    print(f"{bystander.right} right answers for the well-behaved client meanwhile, the latest after {bystander.longest:.1f} s")
    for problem in (*bystander.problems, *found.problems):
        print(f"WRONG: {problem}")


if __name__ == "__main__":
    main()
