"""The paper's figure from top to bottom: siglip, projector, hyper (over image_attention), qwen2, owl3.

Shapes are written in the letters of `owl3_jax.batch`. Modules declare parameters with logical axis
names; they know no mesh, no file and no flag.
"""
