"""The official inference algorithm in plain PyTorch: what `tools/benchmark.py inference --against-torch` compares with.

One prompt at a time on a CPU, in the dtype of the weights. Its caches are the official ones: text keys and values grow by
`torch.cat`, and those of the images are never kept, so that every hyper layer norms, projects and rotates all image tokens
again for each new token.

Keys and values are repeated for their query heads, as the official code does by transformers' Qwen2; `repeat_keys=False`
(`--torch-gqa` of the benchmark) leaves that to SDPA's `enable_gqa`, which is faster. Elsewhere the faster plain way is taken,
so that no ratio against it looks too good: logits of the last position only, masks and RoPE tables once a step instead of once
a layer, keys rotated before they are repeated, no mask at decode. `F.rms_norm` takes as long as a norm written out.

PyTorch is used as installed. On AMD processors its MKL has half of oneDNN's matmul rate in float32 (measured: 180 of
325 GFLOP/s; on these, part of a ratio of vision or prefill comes from there) and bfloat16, which is oneDNN's, runs at 825.

The reference of the parity ladder (`tests/parity/torch_owl3.py`) stays apart: whole score matrices and no cache are its point.
"""

from .decoder import Cache
from .model import TorchOwl3

__all__ = ["Cache", "TorchOwl3"]
