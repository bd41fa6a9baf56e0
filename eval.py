"""Scores a model on benchmarks; the same as `owl3 eval`.

    python eval.py --config configs/digits.py --workdir runs/digits
    python eval.py --checkpoint DIR --tasks nlvr2,mvbench --data-root DATA --output DIR
    python eval.py --tasks list

Prints official and strict scores with their intervals and writes them to the output (`WORKDIR/eval` by default): scores.json,
report.html to look at, samples.jsonl with every answer. Answers are kept as they come, so that the same command goes on where
a stopped one ended.
"""

from owl3_jax.cli.eval import main

if __name__ == "__main__":
    main()
