"""Few programs answer requests of all sizes."""

import pytest

from owl3_jax.serving.pools import Pools, PoolSizes
from owl3_jax.serving.steps import Steps
from tests.unit.inference.tiny_engine import runtime


@pytest.mark.parametrize(("platform", "programs"), [("cpu", 2 + 9 + 5), ("tpu", 2 + 5 + 3 * 3 * 5)])
def test_the_warm_up_compiles_few_programs(platform, programs, monkeypatch):
    """Vision towers, lengths of a chunk, and numbers of answers by widths of both tables; on a TPU they take long."""
    monkeypatch.setattr("jax.default_backend", lambda: platform)
    for name in ("_encode", "_call", "_choose"):
        monkeypatch.setattr(Steps, name, lambda *_: None)
    pools = Pools(runtime(), PoolSizes(text_pages=3, tokens_per_page=32, image_pages=1))
    said = list(Steps(runtime(), pools, (), text_width=256, image_width=512).warm_up(16))
    assert len(said) == len(set(said)) == programs
