"""The golden checkpoints through our converter, model and cached decoding, against outputs made in float64."""

import functools
from pathlib import Path

import jax
import numpy as np
import pytest

from owl3_jax.config import ComputeConfig
from owl3_jax.convert.cases import Case, pad_cases, read_cases
from owl3_jax.convert.load import load_params
from owl3_jax.formats.checkpoint import load_config
from owl3_jax.inference.runtime import Runtime
from owl3_jax.models.owl3 import Outputs, Owl3
from tests.greedy import greedy_tokens
from tests.tolerances import GOLDEN_HIDDEN_STATES, GOLDEN_IMAGE_EMBEDS, GOLDEN_LOGITS

GOLDEN = Path(__file__).parents[1] / "golden"
CHECKPOINTS = ("tiny-240728", "tiny-tied", "tiny-241014", "tiny-241101")


@functools.cache
def load(checkpoint: str):
    """(model, params, cases) of one golden checkpoint."""
    config = load_config(GOLDEN / checkpoint)
    model = Owl3(config, ComputeConfig(dtype="float32"), collect_hidden_states=True)
    cases = read_cases(GOLDEN / f"{checkpoint}.npz", config.vision.image_size)
    return model, load_params(GOLDEN / checkpoint, config), cases


def check_outputs(case: Case, outputs: Outputs, row: int) -> None:
    T, I = len(case.input_ids), len(case.image_starts)
    ours = {
        "logits": outputs.logits[row, :T],
        "image_embeds": outputs.image_features[row, :I],
        "hidden_states": outputs.hidden_states[:, row, :T],
    }
    limits = {"logits": GOLDEN_LOGITS, "image_embeds": GOLDEN_IMAGE_EMBEDS, "hidden_states": GOLDEN_HIDDEN_STATES}
    for name in limits.keys() & case.expected.keys():
        np.testing.assert_allclose(ours[name], case.expected[name], rtol=0, atol=limits[name], err_msg=f"{case.name}: {name}")


def check(model: Owl3, params, cases: list[Case], **sizes: int) -> None:
    """All outputs of the cases, run as one batch of the given sizes."""
    batch = pad_cases(cases, **sizes)
    outputs = jax.jit(model.apply)({"params": params}, batch)
    answers = greedy_tokens(Runtime(model.config, model.compute, params), batch, len(cases[0].expected["greedy"]))
    for row, case in enumerate(cases):
        check_outputs(case, outputs, row)
        assert answers[row] == case.expected["greedy"].tolist(), case.name


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_all_cases_in_one_padded_batch(checkpoint):
    model, params, cases = load(checkpoint)
    assert [len(case.image_starts) for case in cases] == [0, 1, 4, 11]
    assert all({"logits", "greedy"} <= case.expected.keys() for case in cases)
    check(model, params, cases, tokens=67, images=13)


@pytest.mark.parametrize("checkpoint", ["tiny-240728", "tiny-241101"])
def test_text_alone_in_a_batch_without_image_slots(checkpoint):
    model, params, cases = load(checkpoint)
    check(model, params, cases[:1])


def test_one_case_alone_without_padding():
    model, params, cases = load("tiny-tied")
    check(model, params, cases[2:3])
