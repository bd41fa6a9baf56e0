"""`python -m owl3_jax`: the command `owl3`."""

from owl3_jax.cli import main

if __name__ == "__main__":
    main()
