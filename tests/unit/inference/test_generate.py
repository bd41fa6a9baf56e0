import numpy as np
import pytest

from owl3_jax.inference.generate import generate
from owl3_jax.inference.runtime import Runtime
from owl3_jax.models.owl3 import Owl3
from tests.tiny import COMPUTE, FORMS, init, model_config, pack, pad, single, stack

PROMPTS = [single(13, [2, 5], seed=1), single(7, [], seed=2), single(11, [0, 1, 7], seed=3), single(5, [4], seed=4)]


def run(form, batch, **options):
    config = model_config(form)
    return generate(Runtime(config, COMPUTE, init(config)), batch, **({"max_new_tokens": 9, "stop_ids": [31]} | options))


def uncached(form, prompt, length):
    """Greedy tokens from a whole forward pass each."""
    import jax

    config = model_config(form)
    apply, params = jax.jit(Owl3(config, COMPUTE).apply), {"params": init(config)}
    tokens = list(prompt.tokens[0])
    for _ in range(length):
        row = pad(prompt, 29, 3)
        row.tokens[0, : len(tokens)] = tokens
        row.positions[0, : len(tokens)] = np.arange(len(tokens))
        row.segment_ids[0, : len(tokens)] = 1
        tokens.append(int(np.asarray(apply(params, row).logits)[0, len(tokens) - 1].argmax()))
    return tokens[-length:]


@pytest.mark.parametrize("form", FORMS)
def test_caches_give_the_tokens_of_whole_forward_passes(form):
    answers = run(form, stack([pad(prompt, 17, 3) for prompt in PROMPTS]))
    assert answers.tolist() == [uncached(form, prompt, 9) for prompt in PROMPTS]


def test_an_answer_ends_with_its_stop_id_and_zeros():
    batch = stack([pad(prompt, 17, 3) for prompt in PROMPTS])
    free = run("gated", batch)
    stop = int(free[0, 3])
    stopped = run("gated", batch, stop_ids=[stop, 31])
    for row, answer in zip(free, stopped, strict=True):
        end = list(row).index(stop) + 1 if stop in row else 9
        assert answer.tolist() == [*row[:end], *[0] * (9 - end)]


def test_packed_prompts_are_refused():
    with pytest.raises(ValueError, match="one prompt a row"):
        run("gated", pack(PROMPTS[:2]))
