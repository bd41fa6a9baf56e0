"""Every numeric tolerance of the tests, largest absolute differences, with what was measured beside it.

Measured on an x86 CPU with jax 0.10.2 and torch 2.13.0. A tolerance is never loosened without the new measurement
and its reason.
"""

# Golden outputs in float64 against our model in float32 (logits up to 4, the others up to 12).
GOLDEN_LOGITS = 2e-5  # measured 8e-6
GOLDEN_IMAGE_EMBEDS = 2e-5  # measured 7e-6
GOLDEN_HIDDEN_STATES = 3e-5  # measured 1.2e-5, in the last layer of tiny-240728

# PyTorch in float64 against our modules and model in float32 (values up to about 7).
MODULE = 5e-6  # measured 1.7e-6, SigLIP
MODEL = 1e-5  # measured 2.4e-6
GRADIENT = 2e-5  # as a share of the tensor's largest; measured 5e-6
ZERO_GRADIENT = 1e-7  # where the exact gradient is zero; measured 8e-9

# Our model and PyTorch's, both in bfloat16, against float64: root mean square over logits whose own is about 1.
BFLOAT16_LOGITS = 0.03  # measured 0.013 gated, 0.020 static, 0.011 joint
BFLOAT16_RATIO = 1.3  # ours / PyTorch's; measured 1.04, 0.92, 1.03

# Scores of crop grids, float32 up to 101, against exact fractions.
GRID_SCORE = 2e-5  # measured 1.0e-5 over 20000 sizes

# Probabilities that tokens are drawn with and log-probabilities, ours in float32, against float64.
PROBABILITY = 1e-6  # measured 2.7e-7 over 1500 settings
LOG_PROBABILITY = 1e-6  # measured 1.3e-7

# Logits (up to 6), image features (up to 18) and log-probabilities of the engine: batches against single runs, caches against
# whole forward passes, eight devices against one, all in float32.
ENGINE_LOGITS = 4e-5  # measured 1.2e-5, a chunk at a time against a whole pass

# int8 for matrices, and for cached keys and values, on logits up to 9 of tiny models with random weights, all in float32.
INT8_ROUNDING = 4e-5  # against floats of the very same numbers; measured 1.2e-5 gated and static, 1.6e-5 joint
INT8_WEIGHTS = 2.0  # against the floats before; measured 0.61 gated, 0.84 static, 1.50 joint
# Caches on a mesh, or of a batch: sums in another order round a cached number to its neighbour.
INT8_FLIPS = 1e-2  # measured 2.3e-3, 2.0e-3
INT8_CACHES = 0.5  # measured 0.33 gated, 0.29 static, 0.31 joint

# The loss and its gradients in chunks of positions against whole logits, as a share of the largest, float32.
CHUNKED_LOSS = 1e-6  # measured 3e-7

# Gradients of a batch in microbatches against all of it at once, on one device and on eight, as a share of the largest.
MICROBATCHES = 5e-6  # measured 1.5e-6: sums over rows are taken in another order

# Attention on eight devices against one, float32, values up to 6.
ATTENTION_MESH = 2e-6  # measured 1e-6

# Splash's kernels, interpreted, against plain XLA: outputs, log-sum-exps and gradients, as a share of the largest.
KERNEL_FLOAT32 = 5e-6  # measured 1.1e-6
KERNEL_BFLOAT16 = 0.016  # measured 0.0085; two neighbours lie 0.0078 apart

# Remat policies against none of it: loss, and gradients as a share of the largest, float32.
# Measured 5.2e-6 with tests/xla_flags.py, whose programs round differently what they fuse differently, else 1.1e-7.
REMAT = 2e-5

# Parameters of about 1, moved by up to 0.004, after one train step on different meshes in float32.
TRAIN_STEP = 2e-7  # measured 6e-8

# A sample in a packed row against the same sample alone, and 2 x 2 x 2 devices (data, fsdp, tensor) against one, with LoRA
# and without: loss, and gradients as a share of the largest, float32.
LOSS_EQUALITY = 1e-5  # measured 1.5e-6

# Logits of a trained and exported model, ours in float32 against PyTorch in float64.
EXPORTED_LOGITS = 1e-4  # measured 3.7e-6 by tools/three_stages.py

# Levels of 255 by which a view of a JPEG file changes that is decoded at a fraction of its size: 99 % of them, and the mean.
# Sharp photographs at five sizes of view and two qualities.
DRAFT_LEVELS = 20  # measured 14
DRAFT_MEAN = 3.0  # measured 2.03

# Losses of one run on other meshes and by other processes, float32, as a share.
OTHER_MESH = 1e-6
