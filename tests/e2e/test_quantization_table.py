"""`tools/quantization_table.py` and `from_pretrained` with int8, on a golden checkpoint."""

import json

import jax.numpy as jnp
from PIL import Image

import owl3_jax
from tests.e2e.tools import make_checkpoint, run_script_here


def test_the_table_compares_int8_with_float32(tmp_path, monkeypatch, capsys):
    checkpoint = make_checkpoint(tmp_path / "checkpoint")
    Image.new("RGB", (28, 28), "red").save(tmp_path / "red.png")
    requests = tmp_path / "requests.jsonl"
    requests.write_text(json.dumps({"prompt": "Which is red?", "images": ["red.png", "red.png"]}))
    argv = ("--checkpoint", checkpoint, "--jsonl", requests, "--max-new-tokens", 3, "--variants", "both")
    assert run_script_here(monkeypatch, "quantization_table.py", *argv) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ["weights", "image", "KL", "mean", "KL", "max", "top-1", "answers"]
    floats, both = (row.split()[1:] for row in rows)
    assert floats[4:] == ["0.0e+00", "0.0e+00", "100.0%", "1/1"]
    assert float(both[0]) < float(floats[0]) / 2 and float(both[2]) < float(floats[2]) / 2  # sizes
    assert 0 < float(both[4]) <= float(both[5]) < 1  # KL divergences


def test_a_checkpoint_is_int8_from_the_first_byte(tmp_path):
    owl = owl3_jax.from_pretrained(make_checkpoint(tmp_path / "checkpoint"), weight_dtype="int8", cache_dtype="int8")
    assert (owl.runtime.compute.dtype, owl.runtime.compute.param_dtype) == ("float32", "float32")
    assert owl.params["language_model"]["embed_tokens"].dtype == jnp.int8
    assert isinstance(owl.generate("Why?", max_new_tokens=3), str)
