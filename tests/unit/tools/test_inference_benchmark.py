"""Both sides of the inference benchmark do the same work, and its floors count what is read."""

import numpy as np
import pytest
from inference_benchmark import (
    Ours,
    Settings,
    Torch,
    describe,
    make_report,
    measure,
    measure_batch,
    torch_tensors,
    write_report,
)
from inference_benchmark.floors import decode_bytes
from torch_baseline import TorchOwl3

from owl3_jax.flops import prefill_flops
from owl3_jax.released import NAMED_SIZES
from tests.tiny import FORMS, model_config

ONE_B = NAMED_SIZES["1b-241014"]


def sides(form: str = "gated") -> tuple[Settings, Ours, Torch]:
    settings = Settings(model_config(form, max_position_embeddings=997), "float32", vision_batch_size=2)
    ours = Ours(settings)
    return settings, ours, Torch(settings, TorchOwl3(settings.config, torch_tensors(ours.official_tensors(), "float32")))


@pytest.mark.parametrize("form", FORMS)
def test_both_sides_say_the_same(form):
    _, ours, torch = sides(form)
    for side in (ours, torch):
        side.encode()
        side.read(11)
    assert ours.newest_tokens().tolist() == torch.newest_tokens().tolist()
    ours.decode(5)
    torch.decode(5)
    assert ours.newest_tokens().tolist() == torch.newest_tokens().tolist()


def test_the_report_has_a_line_for_each_number_of_images(tmp_path):
    settings, ours, torch = sides()
    bandwidth = lambda: 1e10
    measurements = [measure(3, ours, torch, 2, bandwidth), measure(65, ours, None, 1, bandwidth)]
    batch = measure_batch(ours, 4, 1)
    report = make_report({"size": "tiny", "dtype": "float32"}, settings.config, "float32", 1e11, measurements, batch)
    assert [row["images"] for row in report["images"]] == [3, 65]
    floor = report["images"][0]["decode_floor"]
    assert floor["seconds"] == floor["bytes"] / 1e10
    growth = report["images"][1]["decode_against_one"]
    assert growth["time"] == measurements[1].ours.medians()["decode"] / measurements[1].decode_of_one
    assert growth["bytes"] == decode_bytes(settings.config, "float32", 65, 365) / decode_bytes(
        settings.config, "float32", 1, 45
    )
    assert "vision" not in report["images"][1]["ours"]  # the same batch yet more often
    assert set(report["images"][0]["ratio"]) == {"vision", "prefill", "decode"} and not report["images"][1]["ratio"]
    assert all(len(runs) == 2 for runs in vars(measurements[0].ours).values())
    assert report["images"][0]["peak_gb"] > 0.05 and batch["rows"] == 4
    assert describe(report).count("images") >= 3
    assert all(path.stat().st_size > 100 for path in write_report(tmp_path, report))


def test_floors_count_the_caches_of_a_prompt():
    per_image = 4 * 2 * 2 * 64 * 729 * 4  # hyper layers, keys and values, heads, size, tokens, bytes
    per_token = 24 * 2 * 2 * 64 * 4
    at = lambda images, tokens: decode_bytes(ONE_B, "float32", images, tokens)
    assert at(8, 50) - at(0, 0) == 8 * per_image + 50 * per_token
    weights = at(0, 0) / 4
    assert 492e6 < weights < 496e6  # 494 M of Qwen2-0.5B, and gates
    assert decode_bytes(ONE_B, "bfloat16", 3, 7) * 2 == at(3, 7)


def test_prefill_floor_grows_with_what_is_visible():
    flops = lambda images, tokens: prefill_flops(ONE_B, images, tokens)
    keys_values = 2 * 729 * 4 * 896 * 2 * 2 * 64
    assert flops(10, 0) - flops(0, 0) == 10 * keys_values
    assert np.isclose(flops(0, 100) / (2 * 100 * 358e6), 1, rtol=0.4)  # two operations a weight and token, plus the head
