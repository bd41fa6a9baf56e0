"""The official inference algorithm in plain PyTorch: what `tools/benchmark.py inference --against-torch` compares with.

One prompt at a time on a CPU, in the dtype of the weights. Its caches are the official ones: text keys and values grow by
`torch.cat`, and those of the images are never kept, so that every hyper layer norms, projects and rotates all image tokens
again for each new token.

Where that leaves room, the faster plain way is taken, so that no ratio against it is too good (times on 2 cores in float32
with the heads of the 1B size): `enable_gqa` instead of repeated keys (64 images: 16 instead of 114 ms at decode, 456 instead
of 546 ms at a prefill of 320 tokens), logits of the last position only, masks and RoPE tables once a step instead of once a
layer, no mask at decode. `F.rms_norm` takes as long as a norm written out.

PyTorch is taken as it is installed. On AMD processors its MKL has half of oneDNN's matmul rate in float32 (measured: 180 of
325 GFLOP/s; on these, part of a ratio of vision or prefill comes from there) and bfloat16, which is oneDNN's, runs at 825.

The reference of the parity ladder (`tests/parity/torch_owl3.py`) stays apart: whole score matrices and no cache are its point.
"""

from .decoder import Cache
from .model import TorchOwl3

__all__ = ["Cache", "TorchOwl3"]
