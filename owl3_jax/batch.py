"""The one batch form, and the glossary of dims that the whole project writes shapes with.

Glossary
    B   rows of a batch                     E   decoder width
    T   text positions of a row             H   query heads
    C   cached text positions (keys)        K   key/value heads
    I   images of a row (crops and video    G   query heads per key/value head, H / K
        frames count as images)             D   head size, E / H
    J   images of one chunk                 R   rows of answers: n for each of B prompts
    L   tokens of one image                 F   width of the decoder's MLP
    S   side of the squared image, pixels   V   vocabulary rows (Vp: and padding)
    P   side of a patch, pixels             N   decoder layers (M of them hyper layers)
    M   hyper layers                        Ev Hv Dv Fv Nv  the same, of the vision encoder
    Q   sources of training data
"""

from typing import Any, NamedTuple

AnyArray = Any  # Any: a jax or numpy array, or its ShapeDtypeStruct, which share no type


class Batch(NamedTuple):
    """Rows of text and images, for training, packing, padding and inference alike.

    A row holds one or more segments (samples), numbered from 1; 0 is padding, of text and of images.
    A text position attends to positions and images of its own segment only. A row without images,
    rows with different numbers of images and packed rows are therefore one case.
    """

    tokens: AnyArray  # [B, T] int32
    positions: AnyArray  # [B, T] int32, from 0 in each segment; RoPE positions, and the order that causality means
    segment_ids: AnyArray  # [B, T] int32
    pixels: AnyArray  # [B, I, S, S, 3] uint8, or float32 normalised to [-1, 1]
    image_positions: AnyArray  # [B, I] int32, `positions` of the first token of the image's placeholder
    image_segment_ids: AnyArray  # [B, I] int32
    loss_weights: AnyArray = None  # [B, T] float32, in training: weight of predicting tokens[b, t] from what precedes it
    source_ids: AnyArray = None  # [B, T] int32, in training on Q > 1 sources: which one the token is from, from 0
