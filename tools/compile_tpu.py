"""Compiles a run for TPUs that you do not have, and reports what it needs of each chip. The same as `owl3 compile`.

python tools/compile_tpu.py --config configs/stage3.py:7b-240728 --topology v5e:16x16
"""

from owl3_jax.cli.compile import main

if __name__ == "__main__":
    main()
