"""Prints the table of docs/results.md: how each number of the paper's tables is measured, and with which data.

python tools/paper_table.py
"""

from collections.abc import Sequence

from owl3_jax.evaluation.paper import RESULTS, SIZES, TABLES
from owl3_jax.evaluation.tasks import BENCHMARKS, TASKS

_POPE = "POPE"


def main() -> None:
    """Prints the rows in the order of the paper's tables."""
    print(f"| benchmark | {' | '.join(SIZES)} | measured here | `--tasks` | score | files below `--data-root` |")
    print(f"|---|{'---|' * len(SIZES)}---|---|---|---|")
    for table in ("paper-multi", "paper-video", "paper-single"):
        for column in TABLES[table]:
            print(row(column))


def row(column: str) -> str:
    """One benchmark's row."""
    numbers = " | ".join(f"{RESULTS[column][size]:g}" for size in SIZES)
    if column == _POPE:
        tasks = [TASKS[name] for name in BENCHMARKS["pope"]]
        return _row(
            column, numbers, "pope", "mean of the three sets' accuracy, F1 beside it", [n for t in tasks for n in t.about.needs]
        )
    (task,) = (task for task in TASKS.values() if task.about.paper == column)
    score = task.about.metric or ("a file for the server" if task.judge_prompt is None else "a file for the grader, or a judge")
    return _row(column, numbers, task.name, score, task.about.needs)


def _row(column: str, numbers: str, name: str, score: str, needs: Sequence[str]) -> str:
    first = [need.split(" | ")[0] for need in needs]
    shown = f"`{first[0]}`" + (f" and {len(first) - 1} more" if len(first) > 1 else "")
    return f"| {column} | {numbers} | no weights at hand | `{name}` | {score} | {shown} |"


if __name__ == "__main__":
    main()
