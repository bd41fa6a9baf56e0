"""The benchmark's PyTorch baseline gives the golden outputs, so that what it is timed for is the model."""

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch_baseline import TorchOwl3

from owl3_jax.convert.cases import Case, read_cases
from owl3_jax.convert.load import load_params
from owl3_jax.convert.table import params_to_official
from owl3_jax.formats.checkpoint import load_config
from tests.tolerances import BFLOAT16_LOGITS, GOLDEN_IMAGE_EMBEDS, GOLDEN_LOGITS

GOLDEN = Path(__file__).parents[1] / "golden"
CHECKPOINTS = ("tiny-240728", "tiny-tied", "tiny-241014", "tiny-241101")


@functools.cache
def tensors_of(checkpoint: str) -> dict[str, torch.Tensor]:
    files = sorted((GOLDEN / checkpoint).glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def cases_of(checkpoint: str) -> list[Case]:
    return read_cases(GOLDEN / f"{checkpoint}.npz", load_config(GOLDEN / checkpoint).vision.image_size)


def baseline(checkpoint: str, dtype: torch.dtype = torch.float32, **options: bool) -> TorchOwl3:
    tensors = {name: tensor.to(dtype) for name, tensor in tensors_of(checkpoint).items()}
    return TorchOwl3(load_config(GOLDEN / checkpoint), tensors, **options)


def prompt(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """input_ids and image_starts"""
    return torch.from_numpy(case.input_ids.astype(np.int64))[None], torch.from_numpy(case.image_starts.astype(np.int64))


def pixels(case: Case) -> torch.Tensor:
    return torch.from_numpy(case.pixel_values.transpose(0, 3, 1, 2).copy())


def check_close(ours: torch.Tensor, expected: np.ndarray, atol: float) -> None:
    np.testing.assert_allclose(ours.float().numpy(), expected, rtol=0, atol=atol)


@pytest.mark.parametrize("batch_size", [None, 1, 3])
@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_image_features(checkpoint, batch_size):
    model = baseline(checkpoint)
    for case in cases_of(checkpoint)[1:]:
        check_close(model.encode_images(pixels(case), batch_size), case.expected["image_embeds"], GOLDEN_IMAGE_EMBEDS)


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_prefill_and_greedy_answer(checkpoint, number):
    model, case = baseline(checkpoint), cases_of(checkpoint)[number]
    features = model.encode_images(pixels(case))
    logits, _ = model.prefill(*prompt(case), features)
    check_close(logits[0], case.expected["logits"][-1], GOLDEN_LOGITS)
    expected = case.expected["greedy"].tolist()
    assert model.greedy(*prompt(case), features, len(expected)) == expected


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_decode_goes_on_as_prefill_would(checkpoint):
    """The prompt read up to the last image's placeholder and its first token after it, then token by token; shared keys."""
    model, case = baseline(checkpoint, repeat_keys=False), cases_of(checkpoint)[3]
    tokens, starts = prompt(case)
    features, read = model.encode_images(pixels(case)), int(starts[-1]) + 2
    assert read < tokens.shape[1]
    _, cache = model.prefill(tokens[:, :read], starts, features)
    for position in range(read, tokens.shape[1]):
        logits = model.decode(tokens[:, position : position + 1], cache)
        check_close(logits[0], case.expected["logits"][position], GOLDEN_LOGITS)
    assert cache.length == tokens.shape[1]


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_bfloat16(checkpoint):
    model, errors, scale = baseline(checkpoint, torch.bfloat16), [], []
    for case in cases_of(checkpoint):
        logits, _ = model.prefill(*prompt(case), model.encode_images(pixels(case)))
        assert logits.dtype == torch.bfloat16
        errors.append(logits[0].float().numpy() - case.expected["logits"][-1])
        scale.append(case.expected["logits"][-1])
    assert np.std(errors) < BFLOAT16_LOGITS * np.std(scale)


def test_greedy_answer_ends_with_a_stop_id():
    model, case = baseline("tiny-241014"), cases_of("tiny-241014")[1]
    expected = case.expected["greedy"].tolist()
    answer = model.greedy(*prompt(case), model.encode_images(pixels(case)), len(expected), stop_ids=expected[4:5])
    assert answer == expected[: expected.index(expected[4]) + 1]


def test_our_parameters_feed_it():
    config, case = load_config(GOLDEN / "tiny-240728"), cases_of("tiny-240728")[2]
    official = params_to_official(load_params(GOLDEN / "tiny-240728", config), config)
    model = TorchOwl3(config, {name: torch.from_numpy(tensor.copy()) for name, tensor in official.items()})
    logits, _ = model.prefill(*prompt(case), model.encode_images(pixels(case)))
    check_close(logits[0], case.expected["logits"][-1], GOLDEN_LOGITS)


def test_weights_of_another_form_are_refused():
    with pytest.raises(ValueError, match=r"missing, such as .*self_attn\.gate"):
        TorchOwl3(load_config(GOLDEN / "tiny-241014"), tensors_of("tiny-241101"))


def test_a_start_for_every_image():
    model, case = baseline("tiny-241014"), cases_of("tiny-241014")[2]
    tokens, starts = prompt(case)
    with pytest.raises(ValueError, match="places 3 images, but features holds 4"):
        model.prefill(tokens, starts[:3], model.encode_images(pixels(case)))
