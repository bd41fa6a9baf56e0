"""The parts of `tools/benchmark.py inference`: two sides that do the same work, what is measured of them, and the report."""

from .measure import measure, measure_batch, most_tokens
from .report import describe, make_report, write_report
from .sides import Ours, Settings, Torch, torch_tensors

__all__ = [
    "Ours",
    "Settings",
    "Torch",
    "describe",
    "make_report",
    "measure",
    "measure_batch",
    "most_tokens",
    "torch_tensors",
    "write_report",
]
