"""Scores the model of a workdir on held-out images.

    python eval.py --config configs/digits.py --workdir runs/digits

Prints the scores and writes them to `WORKDIR/eval/`: report.json, exact_match.png, distractor_resistance.png, and samples.png
with questions, their pictures and the model's answers. Answers are appended to a file there as they come, so that the same
command resumes an evaluation that was stopped; it is the same as `owl3 eval`.
"""

from owl3_jax.cli.eval import main

if __name__ == "__main__":
    main()
