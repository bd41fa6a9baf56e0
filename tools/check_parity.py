"""Compares the model's numbers with those of another implementation. The same as `owl3 parity`.

python tools/check_parity.py --checkpoint tests/golden/tiny-241101 --cases tests/golden/tiny-241101.npz
"""

from owl3_jax.cli.parity import main

if __name__ == "__main__":
    main()
