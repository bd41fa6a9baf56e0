"""The whole model against PyTorch: logits, greedy tokens, gradients, bfloat16, and our parameters in PyTorch."""

import re

import jax
import numpy as np
import pytest
import torch

from owl3_jax.convert.table import params_to_official
from owl3_jax.inference.runtime import Runtime
from owl3_jax.models.owl3 import Owl3
from owl3_jax.training.gradients import head_table
from owl3_jax.training.loss import next_token_sums
from tests.greedy import greedy_tokens
from tests.parity.ladder import FLOAT32, FORMS, batch_of, check, pair, sample
from tests.tolerances import GRADIENT, MODEL, ZERO_GRADIENT

TIED = {"tie_word_embeddings": True}
SIZES = {
    "several key heads": {"hidden_size": 84, "num_attention_heads": 6, "num_key_value_heads": 2},
    "neighbours": {"hyper_layers": (1, 2, 3)},
    "only the last": {"hyper_layers": (5,)},
    "tied": TIED,
}


def samples_of(config):
    return [sample(config, 13, [2, 5, 6]), sample(config, 7, [], seed=1), sample(config, 11, [0, 7], seed=2)]


def check_logits(config, reference, params, atol):
    samples = samples_of(config)
    outputs = jax.jit(Owl3(config, FLOAT32).apply)({"params": params}, batch_of(samples, 17, 5))
    for i, s in enumerate(samples):
        expected = reference(*s.to_torch())
        check(outputs.logits[i, : len(s.tokens)], expected.logits, atol)
        if len(s.starts):
            check(outputs.image_features[i, : len(s.starts)], expected.image_embeds, atol)


@pytest.mark.parametrize("form", FORMS)
def test_whole_model(form):
    check_logits(*pair(form), MODEL)


@pytest.mark.parametrize("name", SIZES)
def test_whole_model_in_other_sizes(name):
    form = FORMS[list(SIZES).index(name) % len(FORMS)]
    check_logits(*pair(form, **SIZES[name]), MODEL)


@pytest.mark.parametrize("form", FORMS)
def test_greedy_tokens(form):
    config, reference, params = pair(form)
    samples = samples_of(config)
    ours = greedy_tokens(Runtime(config, FLOAT32, params), batch_of(samples, 17, 5), 5)
    for answer, s in zip(ours, samples, strict=True):
        tokens, pixels, starts = s.to_torch()
        for _ in range(5):
            tokens = torch.cat([tokens, reference(tokens, pixels, starts).logits[-1:].argmax(dim=-1)])
        assert answer == tokens[-5:].tolist()


@pytest.mark.parametrize("form", FORMS)
def test_gradients_of_the_loss(form):
    config, reference, params = pair(form)
    samples = samples_of(config)
    batch = batch_of(samples, 17, 5)

    def loss(params):
        x = Owl3(config, FLOAT32).apply({"params": params}, batch, method="last_hidden_state")
        sums = next_token_sums(x, head_table(params), batch, vocab_size=config.vocab_size, chunk=5)
        return sums.minimised / sums.weights.sum()

    value, grads = jax.jit(jax.value_and_grad(loss))(params)

    inputs = [s.to_torch() for s in samples]
    logits = torch.cat([reference(*arguments).logits[:-1] for arguments in inputs])
    reference.zero_grad()
    expected = torch.nn.functional.cross_entropy(logits, torch.cat([tokens[1:] for tokens, *_ in inputs]))
    expected.backward()

    np.testing.assert_allclose(value, expected.item(), rtol=GRADIENT)
    trained = {name: p.grad.numpy() for name, p in reference.named_parameters() if p.grad is not None}
    ours = params_to_official(grads, config)
    assert ours.keys() == trained.keys()
    worst = {name: np.abs(grad - trained[name]).max() / np.abs(trained[name]).max() for name, grad in ours.items()}
    # A shift of all keys changes no softmax: these gradients are zero, and what is there is rounding.
    zero = {name for name in ours if re.fullmatch(r"vision_model\..*\.k_proj\.bias", name)}
    assert max(np.abs(ours[name]).max() for name in zero) < ZERO_GRADIENT
    assert {name: error for name, error in worst.items() if error > GRADIENT and name not in zero} == {}
