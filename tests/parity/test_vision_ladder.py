"""From pixels to image tokens: each module against transformers' SigLIP."""

import pytest
import torch

from owl3_jax.models.projector import Projector
from owl3_jax.models.siglip import Embeddings, EncoderBlock, Siglip
from tests.parity.ladder import FLOAT32, FORMS, check, normal, pair, row, to_torch
from tests.tolerances import MODULE


def test_patch_embedding_drops_the_last_pixels():
    config, reference, params = pair()
    side = config.vision.image_size
    assert side % config.vision.patch_size != 0
    pixels = normal(2, side, side, 3)
    ours = Embeddings(config.vision, FLOAT32).apply({"params": params["vision_model"]["embeddings"]}, pixels)
    check(ours, reference.vision_model.embeddings(to_torch(pixels.transpose(0, 3, 1, 2))), MODULE)


def test_encoder_block():
    config, reference, params = pair()
    x = normal(2, config.vision.tokens_per_image, config.vision.hidden_size)
    block = {"params": row(params["vision_model"]["layers"], 1)}
    ours, _ = EncoderBlock(config.vision, FLOAT32).apply(block, x)
    check(ours, reference.vision_model.encoder.layers[1](to_torch(x), attention_mask=None), MODULE)


@pytest.mark.parametrize(("side", "patch"), [(11, 3), (12, 3), (23, 7)])
def test_siglip_up_to_the_penultimate_block(side, patch):
    config, reference, params = pair(image_size=side, patch_size=patch)
    pixels = normal(3, side, side, 3)
    ours = Siglip(config.vision, FLOAT32).apply({"params": params["vision_model"]}, pixels)
    with torch.no_grad():
        states = reference.vision_model(to_torch(pixels.transpose(0, 3, 1, 2)), output_hidden_states=True).hidden_states
    assert len(states) == config.vision.num_hidden_layers + 1
    check(ours, states[-2], MODULE)


@pytest.mark.parametrize("form", FORMS)
def test_projector(form):
    config, reference, params = pair(form)
    x = normal(2, config.vision.tokens_per_image, config.vision.hidden_size)
    ours = Projector(config, FLOAT32).apply({"params": params["vision2text_model"]}, x)
    check(ours, reference.vision2text_model(to_torch(x)), MODULE)
