"""Parameters from a SigLIP and a Qwen2 directory that transformers saved."""

import dataclasses

import jax
import numpy as np
import pytest
import torch
from transformers import Qwen2ForCausalLM, SiglipConfig, SiglipModel

from owl3_jax.config import MeshConfig
from owl3_jax.convert.parts import load_parts
from owl3_jax.formats.errors import CheckpointError
from owl3_jax.sharding import make_mesh
from tests.parity.torch_owl3 import qwen2_config, siglip_config
from tests.tiny import FORMS, model_config

CONFIG = model_config("gated", hidden_size=84, num_attention_heads=6, num_key_value_heads=3, hyper_layers=(2, 5))
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """(SigLIP with its text model, Qwen2 with three rows of vocabulary more), as directories and as PyTorch models."""
    torch.manual_seed(0)
    text = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 9}
    siglip = SiglipModel(SiglipConfig(text_config=text, vision_config=siglip_config(CONFIG).to_dict()))
    qwen2 = Qwen2ForCausalLM(qwen2_config(dataclasses.replace(CONFIG, vocab_size=CONFIG.vocab_size + 3)))
    directory = tmp_path_factory.mktemp("parts")
    siglip.save_pretrained(directory / "siglip")
    qwen2.save_pretrained(directory / "qwen2")
    return directory / "siglip", directory / "qwen2", siglip, qwen2


@pytest.mark.parametrize("form", FORMS)
def test_takes_what_is_there_and_makes_the_rest(parts, form):
    vision, language, siglip, qwen2 = parts
    config = dataclasses.replace(CONFIG, form=form)
    params = load_parts(vision, language, config, key=KEY)
    decoder = params["language_model"]
    rows = qwen2.model.embed_tokens.weight.detach().numpy()[: config.vocab_size]
    np.testing.assert_array_equal(decoder["embed_tokens"], rows)
    position = siglip.vision_model.embeddings.position_embedding.weight.detach().numpy()
    np.testing.assert_array_equal(params["vision_model"]["embeddings"]["position_embedding"], position)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(params))
    assert all(x.std() > 0 for name, x in params["vision2text_model"].items() for x in [x["kernel"]])


def test_image_keys_and_values_start_as_the_texts(parts):
    vision, language, _, _ = parts
    decoder = load_parts(vision, language, CONFIG, key=KEY)["language_model"]
    text, image = decoder["layers"]["self_attn"], decoder["hyper_layers"]["v_kv_proj"]
    for m, layer in enumerate(CONFIG.hyper_layer_indices):
        for part, name in enumerate(("k_proj", "v_proj")):
            np.testing.assert_array_equal(image["kernel"][m, :, :, part], text[name]["kernel"][layer])
            np.testing.assert_array_equal(image["bias"][m, :, part], text[name]["bias"][layer])


def test_onto_a_mesh(parts):
    vision, language, _, _ = parts
    params = load_parts(vision, language, CONFIG, make_mesh(MeshConfig(data=1, fsdp=2, tensor=-1)), key=KEY)
    jax.tree.map(np.testing.assert_array_equal, params, load_parts(vision, language, CONFIG, key=KEY))


def test_parts_that_do_not_fit(parts):
    vision, language, _, _ = parts
    wrong = dataclasses.replace(CONFIG, num_hidden_layers=4, rope_theta=5.0, hyper_layers=(2,))
    with pytest.raises(CheckpointError) as error:
        load_parts(vision, language, wrong, key=KEY)
    assert "num_hidden_layers is 5, not 4" in str(error.value)
    with pytest.raises(CheckpointError, match=r"embed_tokens.weight: shape \[34, 84\], expected \[50, 84\]"):
        load_parts(vision, language, dataclasses.replace(CONFIG, vocab_size=50), key=KEY)
