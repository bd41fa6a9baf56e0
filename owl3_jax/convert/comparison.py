"""The outputs of two implementations for one case, compared in a table with a row for each tensor."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from owl3_jax.convert.cases import Outputs


class Row(NamedTuple):
    """One line of the table."""

    case: str
    tensor: str
    difference: str  # largest absolute one
    scale: str  # largest absolute expected value
    agrees: bool
    note: str = ""


def compare(case: str, expected: Outputs, found: Outputs, atol: float) -> Iterator[Row]:
    """The rows of one case, for all that is expected of it.

    Args:
        case: its name.
        expected: outputs as `owl3_jax.convert.cases.Case` has them.
        found: ours; at least those that are expected.
        atol: largest absolute difference that agrees; greedy tokens must be the same.
    """
    for name, theirs in expected.items():
        ours = found[name]
        if name == "greedy":
            same = int((ours == theirs).sum())
            yield Row(case, name, "", "", same == len(theirs), f"{same} of {len(theirs)} tokens")
        elif name == "hidden_states" and ours.shape == theirs.shape:
            for layer, pair in enumerate(zip(ours, theirs, strict=True)):
                yield _tensor_row(case, f"hidden_states {layer}", *pair, atol)
        else:
            row = _tensor_row(case, name, ours, theirs, atol)
            yield row._replace(note=_distributions(ours, theirs)) if name == "logits" and not row.note else row


def _tensor_row(case: str, tensor: str, ours: Float[np.ndarray, "..."], expected: Float[np.ndarray, "..."], atol: float) -> Row:
    if ours.shape != expected.shape:
        return Row(case, tensor, "", "", False, f"shape {ours.shape}, expected {expected.shape}")
    difference = float(np.abs(ours - expected).max())
    return Row(case, tensor, f"{difference:.1e}", f"{np.abs(expected).max():.2f}", difference <= atol)  # NaN does not agree


def _distributions(ours: Float[np.ndarray, "T V"], expected: Float[np.ndarray, "T V"]) -> str:
    expected, ours = expected.astype(np.float64), ours.astype(np.float64)
    log_p, log_q = (logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True) for logits in (expected, ours))
    divergence = (np.exp(log_p) * (log_p - log_q)).sum(axis=-1).mean()
    best = zip(*(np.argsort(logits, axis=-1)[:, -10:] for logits in (expected, ours)), strict=True)
    shared = np.mean([len(set(a) & set(b)) for a, b in best])
    return f"KL {divergence:.1e}, top ten share {shared:.1f}"
