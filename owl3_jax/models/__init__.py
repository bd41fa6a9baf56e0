"""The paper's figure from top to bottom: siglip, projector, hyper, qwen2, owl3.

Shapes are written in the letters of `owl3_jax.batch`. Modules declare parameters with logical axis names; they know no mesh, no
file and no flag. `owl3_jax.attention` and `owl3_jax.nn` have what they are built from.
"""
