"""The decoder's modules against transformers' Qwen2, and hyper attention against plain PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from owl3_jax.attention.visibility import visibility
from owl3_jax.config import ModelConfig
from owl3_jax.models.hyper import Fusion, HyperLayers
from owl3_jax.models.qwen2 import Attention, Carry, DecoderLayer, LayerInputs
from owl3_jax.nn.norms import rms_norm
from owl3_jax.nn.rope import rope
from tests.parity.ladder import FLOAT32, FORMS, Pair, check, normal, pair, row, to_torch
from tests.tolerances import MODULE

T = 13
STARTS = [2, 5, 6]
PLAIN, HYPER = 0, 1  # decoder layers of `tests.tiny`; the second is the first hyper layer


def layer_inputs(config: ModelConfig, params: dict, features: jax.Array) -> LayerInputs:
    """What the layers of one row of T tokens read, with image features [1, I, L, E] at STARTS."""
    positions, ones = jnp.arange(T)[None], jnp.ones((1, T), jnp.int32)
    starts = jnp.array([STARTS[: features.shape[1]]], jnp.int32)
    inclusive = config.image_is_seen_by_its_own_token
    seen = visibility(positions, ones, starts, jnp.ones_like(starts), inclusive=inclusive)
    hyper = HyperLayers(config, FLOAT32).bind({"params": params["language_model"]["hyper_layers"]})
    scales = params["language_model"]["input_layernorm"]["scale"][np.array(config.hyper_layer_indices)]
    fusion = Fusion((hyper.image_cache(features, starts, scales),), seen, hyper.gate_weights())
    return LayerInputs(positions, visibility(positions, ones, positions, ones), None, fusion)


def attention(model: Pair, layer: int, x: jax.Array, features: jax.Array) -> jax.Array:
    config, _, params = model
    weights = {"params": row(params["language_model"]["layers"], layer)["self_attn"]}
    inputs = layer_inputs(config, params, features)
    hyper_layer = config.hyper_layer_indices.index(layer) if layer in config.hyper_layer_indices else -1
    out, _ = Attention(config, FLOAT32).apply(
        weights, x[None], Carry(x[None]), jnp.int32(layer), jnp.int32(hyper_layer), inputs
    )
    return out[0]


def test_rms_norm():
    config, reference, params = pair()
    x = normal(T, config.hidden_size) * 3
    ours = rms_norm(x, params["language_model"]["norm"]["scale"], config.rms_norm_eps)
    check(ours, reference.language_model.model.norm(to_torch(x)), MODULE)


def test_rope():
    config, reference, _ = pair()
    x, positions = normal(T, 3, config.head_dim), jnp.arange(T) * 7
    ours = rope(x, positions[:, None], config.rope_theta)
    check(ours, reference.rotate(to_torch(x), to_torch(positions)), MODULE)


@pytest.mark.parametrize(("heads", "key_heads"), [(3, 1), (3, 3), (7, 1)])
def test_qwen2_attention(heads, key_heads):
    model = pair(hidden_size=14 * heads, num_attention_heads=heads, num_key_value_heads=key_heads)
    config, reference, _ = model
    x = normal(T, config.hidden_size)
    attn = reference.language_model.model.layers[PLAIN].self_attn
    cos_sin = reference.rotary(torch.arange(T), to_torch(x))
    mask = torch.full((T, T), -torch.inf, dtype=torch.float64).triu(1)[None, None]
    expected, _ = attn(to_torch(x)[None], position_embeddings=cos_sin, attention_mask=mask)
    no_images = jnp.zeros((1, 0, config.vision.tokens_per_image, config.hidden_size))
    check(attention(model, PLAIN, x, no_images), expected[0], MODULE)


def test_qwen2_block():
    config, reference, params = pair()
    x = normal(1, T, config.hidden_size)
    weights = {"params": row(params["language_model"]["layers"], PLAIN)}
    scale = params["language_model"]["input_layernorm"]["scale"][PLAIN]
    inputs = layer_inputs(config, params, jnp.zeros((1, 0, config.vision.tokens_per_image, config.hidden_size)))
    carry, _ = DecoderLayer(config, FLOAT32, False).apply(weights, Carry(x), jnp.int32(PLAIN), jnp.int32(-1), scale, inputs)
    empty = torch.zeros(0, config.vision.tokens_per_image, config.hidden_size)
    expected = reference.decoder_layer(reference.language_model.model.layers[PLAIN], to_torch(x[0]), empty, torch.zeros(0))
    check(carry.x[0], expected, MODULE)


@pytest.mark.parametrize("form", FORMS)
def test_hyper_attention(form):
    model = pair(form)
    config, reference, _ = model
    assert HYPER in config.hyper_layer_indices
    x, features = normal(T, config.hidden_size), normal(1, 3, config.vision.tokens_per_image, config.hidden_size, seed=1)
    layer = reference.language_model.model.layers[HYPER]
    starts = torch.tensor(STARTS)
    expected = reference.hyper_attention(layer.self_attn, to_torch(x), layer.input_layernorm(to_torch(features[0])), starts)
    check(attention(model, HYPER, x, features), expected, MODULE)
