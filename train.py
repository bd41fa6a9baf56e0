"""Trains a model, or resumes an earlier run in the same workdir. The same as `owl3 train`.

    python train.py --config configs/digits.py --workdir runs/digits --config.train.steps=100

Compiled programs are kept in the user's cache directory, or in JAX_COMPILATION_CACHE_DIR, for the next start.
"""

from owl3_jax.cli.train import main

if __name__ == "__main__":
    main()
