"""Converts a released checkpoint to what this project reads, or back. The same as `owl3 convert`.

python tools/convert_checkpoint.py --from mPLUG-Owl3-7B-240728 --to checkpoints/7b-240728 --dtype bfloat16
"""

from owl3_jax.cli.convert import main

if __name__ == "__main__":
    main()
