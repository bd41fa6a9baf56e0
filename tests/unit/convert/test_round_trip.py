"""Official -> ours -> official on random architectures: every tensor comes back, bit by bit."""

import json
import tempfile
from pathlib import Path

import ml_dtypes
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from owl3_jax.config import Form, ModelConfig, VisionConfig
from owl3_jax.convert.directories import to_hugging_face, to_orbax
from owl3_jax.convert.official import parameter_shapes
from owl3_jax.convert.table import official_names, official_shape, row_shape
from owl3_jax.formats.checkpoint import load_config
from owl3_jax.formats.config_json import config_json_of
from tests.tiny import FORMS
from tests.unit.convert.checkpoints import Tensors, contents

DTYPES = (np.float32, np.float16, ml_dtypes.bfloat16)


# Heads, key/value heads and layers in any number, any set of hyper layers; a patch may not divide the side of the image.
SIZES = st.fixed_dictionaries(
    {name: st.integers(1, 3) for name in ("groups", "key_heads", "half_head", "vision_heads", "vision_head", "patch", "layers")}
    | {"vision_layers": st.integers(2, 4), "mlp": st.integers(1, 7), "dropped": st.integers(0, 5)}
)


def config_of(form: Form, tied: bool, hyper_layers: set[int], sizes: dict[str, int]) -> ModelConfig:
    """The architecture; hyper layers beyond its depth are left out, but for the last layer."""
    layers, heads = sizes["layers"], sizes["groups"] * sizes["key_heads"]
    vision = VisionConfig(
        hidden_size=sizes["vision_heads"] * sizes["vision_head"],
        intermediate_size=sizes["mlp"] + 1,
        num_hidden_layers=sizes["vision_layers"],
        num_attention_heads=sizes["vision_heads"],
        image_size=sizes["patch"] + sizes["dropped"],
        patch_size=sizes["patch"],
    )
    return ModelConfig(
        form=form,
        vocab_size=11,
        hidden_size=heads * 2 * sizes["half_head"],
        intermediate_size=sizes["mlp"],
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=sizes["key_heads"],
        hyper_layers=tuple(sorted({min(layer, layers) for layer in hyper_layers})),
        tie_word_embeddings=tied,
        vision=vision,
    )


def official_tensors(config: ModelConfig, dtype: np.dtype) -> Tensors:
    """Random tensors of the architecture, and one that the model never reads."""
    rng = np.random.default_rng(0)
    shapes = {"vision_model.post_layernorm.weight": (config.vision.hidden_size,)}
    for entry, shape in parameter_shapes(config).items():
        shapes |= {name: official_shape(entry, row_shape(entry, shape)) for name in official_names(entry, config)}
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


@settings(deadline=None, max_examples=8)
@given(
    st.sampled_from(FORMS),
    st.booleans(),
    st.sets(st.integers(1, 3), min_size=1),
    SIZES,
    st.sampled_from(DTYPES),
    st.integers(100, 5000),
)
def test_round_trip(form, tied, hyper_layers, sizes, dtype, max_shard_bytes):
    config = config_of(form, tied, hyper_layers, sizes)
    tensors = official_tensors(config, np.dtype(dtype))
    with tempfile.TemporaryDirectory() as place:
        official, ours, back = (Path(place) / name for name in ("official", "ours", "back"))
        official.mkdir()
        save_file(tensors, official / "model.safetensors")
        (official / "config.json").write_text(json.dumps(config_json_of(config)))
        to_orbax(official, ours)
        to_hugging_face(ours, back, max_shard_bytes=max_shard_bytes)
        assert load_config(official) == load_config(ours) == load_config(back) == config
        assert contents(back) == {name: (t.dtype, t.shape, t.tobytes()) for name, t in tensors.items()}
