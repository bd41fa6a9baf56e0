"""Checkpoints in sizes that no released one has, from official files to logits and cached greedy tokens.

Shapes are where conversions go wrong unseen: a reshape that swaps heads and head size is right when they are equal.
"""

import jax
import pytest
import torch

from owl3_jax.config import ModelConfig
from owl3_jax.inference.runtime import Runtime
from owl3_jax.models.owl3 import Owl3
from tests.greedy import greedy_tokens
from tests.parity.ladder import FLOAT32, FORMS, Pair, Sample, batch_of, check, pair, sample
from tests.tolerances import MODEL

NEW_TOKENS = 4
SIZES = {
    "one key/value head, 7 heads of 6": {"num_attention_heads": 7, "num_key_value_heads": 1, "hyper_layers": (3,)},
    "a key/value head each, patches of 14": {
        "num_key_value_heads": 3,
        "hyper_layers": (1, 2),
        "rope_theta": 1e6,
        "image_size": 41,
        "patch_size": 14,
    },
    "heads of 2, the last two layers": {
        "num_attention_heads": 21,
        "num_key_value_heads": 7,
        "hyper_layers": (4, 5),
        "rms_norm_eps": 1e-5,
        "image_size": 8,
    },
    "every layer, tied": {"hyper_layers": (1, 2, 3, 4, 5), "tie_word_embeddings": True},
    "one layer, one patch": {"num_hidden_layers": 1, "hyper_layers": (1,), "image_size": 17, "patch_size": 14},
}


def samples_of(config: ModelConfig) -> list[Sample]:
    """Text alone, an image at the very start, eleven images (two behind each other), one at the end."""
    many = [0, 1, 4, 9, 10, 13, 17, 20, 23, 26, 28]
    starts = [[], [0], many, [6]]
    return [sample(config, tokens, where, seed) for seed, (tokens, where) in enumerate(zip((5, 3, 31, 8), starts, strict=True))]


def check_outputs(built: Pair, samples: list[Sample], **sizes: int) -> None:
    """Hidden states, logits and image features of all samples in one padded batch, then of greedy decoding with caches."""
    config, reference, params = built
    batch = batch_of(samples, **sizes)
    model = Owl3(config, FLOAT32, collect_hidden_states=True)
    outputs = jax.jit(model.apply)({"params": params}, batch)
    answers = greedy_tokens(Runtime(model.config, model.compute, params), batch, NEW_TOKENS)
    for i, s in enumerate(samples):
        T, I = len(s.tokens), len(s.starts)
        expected = reference(*s.to_torch())
        check(outputs.logits[i, :T], expected.logits, MODEL)
        check(outputs.hidden_states[:, i, :T], expected.hidden_states, MODEL)
        if I:
            check(outputs.image_features[i, :I], expected.image_embeds, MODEL)
        assert answers[i] == greedy(reference, s)


def greedy(reference: torch.nn.Module, s: Sample) -> list[int]:
    """Without caches: the whole text again for every token."""
    tokens, pixels, starts = s.to_torch()
    for _ in range(NEW_TOKENS):
        tokens = torch.cat([tokens, reference(tokens, pixels, starts).logits[-1:].argmax(dim=-1)])
    return tokens[-NEW_TOKENS:].tolist()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", SIZES)
def test_odd_sizes(form, size):
    built = pair(form, **SIZES[size])
    check_outputs(built, samples_of(built.config), tokens=33, images=12)


@pytest.mark.parametrize("form", FORMS)
def test_text_alone_without_an_image_slot(form):
    built = pair(form)
    check_outputs(built, [sample(built.config, 7, [])], tokens=7, images=0)
