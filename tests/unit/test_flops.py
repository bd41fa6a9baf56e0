"""The formula against numbers made by hand, and against XLA's count where that counts everything."""

import jax
import numpy as np
import pytest

from owl3_jax.config import ComputeConfig, VisionConfig
from owl3_jax.flops import Work, forward_flops, image_cache_flops, peak_flops, train_flops
from owl3_jax.inference import programs
from owl3_jax.models.owl3 import Owl3
from owl3_jax.released import NAMED_SIZES
from owl3_jax.tpu.chips import CHIPS
from tests.tiny import model_config, pack, pad, single, stack

SEVEN_B = NAMED_SIZES["7b-240728"]

# 2 rows of 7 tokens and 3 images: 14 tokens, 6 images of 9 tokens; E=42, H=3, K=1, D=14, F=37, N=5, M=2, V=31; Ev=10, Fv=13
VISION = 2 * 54 * (27 * 10 + 2 * (4 * 10 * 10 + 2 * 10 * 13)) + 2 * (2 * 2 * 6 * 9 * 9 * 10)
PROJECTOR = 2 * 54 * 10 * 42
KEYS_VALUES = 2 * 54 * 2 * 42 * 28
GATES = 2 * 14 * 2 * 3 * 14 * 14
LAYERS = 2 * 14 * 5 * (2 * 42 * 42 + 2 * 42 * 14 + 3 * 42 * 37)
ATTENTION = 2 * 2 * 42 * (5 * 2 * 28 + 2 * 2 * (7 * 27 // 2))
HEAD = 2 * 14 * 42 * 31
WORK = Work.of_rows(model_config(), rows=2, tokens=7, images=3)


def test_the_forward_pass_is_the_sum_of_its_products():
    assert forward_flops(model_config(), WORK) == VISION + PROJECTOR + KEYS_VALUES + GATES + LAYERS + ATTENTION + HEAD
    assert image_cache_flops(model_config(), 6) == KEYS_VALUES
    assert forward_flops(model_config("static"), WORK) == forward_flops(model_config(), WORK) - GATES
    assert forward_flops(model_config("joint"), WORK) == forward_flops(model_config("static"), WORK) + 2 * 54 * 42 * 42


def test_training_everything_takes_three_forward_passes_but_for_what_comes_first():
    patches = 2 * 54 * 27 * 10  # no gradient of pixels
    assert train_flops(model_config(), WORK) == 3 * forward_flops(model_config(), WORK) - patches


def test_frozen_parameters_have_no_gradient():
    trained = ("vision2text_model/.*", "language_model/hyper_layers/.*")  # stage 1
    returning = 2 * KEYS_VALUES + 2 * GATES + LAYERS + 2 * ATTENTION + HEAD
    expected = forward_flops(model_config(), WORK) + PROJECTOR + returning
    assert train_flops(model_config(), WORK, trained) == expected
    assert train_flops(model_config(), WORK, trained, "minimal") == expected + LAYERS
    assert train_flops(model_config(), WORK, trained, "full") == expected + LAYERS + ATTENTION
    assert train_flops(model_config(), WORK, ()) == forward_flops(model_config(), WORK)


def test_the_work_of_a_batch_is_what_its_segments_hold():
    """Counted position by position, in packed and padded rows."""
    rows = [pack([single(13, [2, 5], seed=1), single(11, [0], seed=2)]), single(23, [3, 4, 9, 11, 20], seed=3)]
    batch = stack([pad(row, 29, 6) for row in rows])
    config, tokens, images, text_pairs, image_pairs = model_config(), 0, 0, 0, 0
    for b, t in np.ndindex(batch.tokens.shape):
        segment, position = batch.segment_ids[b, t], batch.positions[b, t]
        if segment:
            tokens += 1
            text_pairs += int(((batch.segment_ids[b] == segment) & (batch.positions[b] <= position)).sum())
            seen = (batch.image_segment_ids[b] == segment) & (batch.image_positions[b] < position)
            image_pairs += int(seen.sum()) * config.vision.tokens_per_image
    images = int((batch.image_segment_ids != 0).sum())
    assert Work.of_batch(config, batch) == Work(tokens, images, text_pairs, image_pairs, tokens)
    assert Work.of_batch(config, batch).plus(Work(1, 2, 3, 4, 5))[:3] == (tokens + 1, images + 2, text_pairs + 3)


def test_peaks_are_those_of_the_chips():
    names = {"v4": "TPU v4", "v5e": "TPU v5 lite", "v5p": "TPU v5", "v6e": "TPU v6 lite", "tpu7x": "TPU7x"}
    assert {name: peak_flops(names[name]) for name in CHIPS} == {
        name: chip.flops / chip.devices for name, chip in CHIPS.items()
    }
    assert peak_flops("cpu") is None and peak_flops("TPU v4 lite") is None


def test_a_token_takes_two_operations_a_weight():
    per_token = forward_flops(SEVEN_B, Work(1, 0, 0, 0, 1))
    assert per_token == pytest.approx(2 * (7.614e9 - 151851 * 3584 + 4 * 28 * 128 * 128), rel=2e-4)  # embedding: looked up


def test_xla_counts_the_same_where_nothing_loops():
    """One block of each scan, all chunks at once; XLA's count has norms, softmax and the like on top."""
    vision = VisionConfig(128, 256, num_hidden_layers=2, num_attention_heads=2, image_size=42, patch_size=14)
    config = model_config(
        hidden_size=192, num_attention_heads=3, intermediate_size=512, num_hidden_layers=2, hyper_layers=(2,), vision=vision
    )
    compute = ComputeConfig(dtype="float32", scan_layers=False, images_per_chunk=8)
    batch = single(64, [1, 5], side=42)._replace(loss_weights=None)
    params = jax.eval_shape(lambda: Owl3(config, compute).init(jax.random.key(0), batch)["params"])
    counted = programs.logits.lower(Owl3(config, compute), params, batch).cost_analysis()["flops"]
    work = Work(64, 2, text_pairs=64 * 64, image_pairs=64 * 2 * 9, outputs=64)
    assert 1 < counted / forward_flops(config, work) < 1.05
