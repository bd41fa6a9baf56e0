"""mPLUG-Owl3 (arXiv 2408.04840) in JAX and Flax, for TPU pods, sharded inference and numeric parity."""
