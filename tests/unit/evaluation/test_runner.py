"""Answers in the order of the prompts, whatever the batches; a fake model that says how many images it sees."""

import dataclasses

import numpy as np
import pytest

from owl3_jax.batch import Batch
from owl3_jax.config import Config, ConfigError, EvalConfig, ModelConfig, VisionConfig
from owl3_jax.data.digits.tokenizer import make_tokenizer
from owl3_jax.evaluation.exact_match import make_questions
from owl3_jax.evaluation.prompts import ImageFile, Prompt
from owl3_jax.evaluation.runner import answer_prompts, decode_answer, make_batch
from owl3_jax.evaluation.shapes import PromptSize
from owl3_jax.processing.images import UnreadableImage
from owl3_jax.processing.processor import Processor

PROCESSOR = Processor(make_tokenizer(), image_size=8)
STOP = PROCESSOR.tokenizer.stop_ids[0]
VISION = VisionConfig(hidden_size=8, intermediate_size=8, num_attention_heads=2, image_size=8, patch_size=2)
CONFIG = Config(
    model=ModelConfig(vision=VISION), eval=EvalConfig(questions=3, images_per_batch=24, batch_shapes=3, max_new_tokens=5)
)


class CountingModel:
    """Answers `red` and the number of images of the row, and keeps the shapes it was called with."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, int, int]] = []

    def __call__(self, batch: Batch) -> np.ndarray:
        rows, tokens = batch.tokens.shape
        self.shapes.append((rows, tokens, batch.pixels.shape[1]))
        answers = np.zeros((rows, 5), np.int32)
        for row, images in enumerate((batch.image_segment_ids != 0).sum(axis=1)):
            ids = [PROCESSOR.tokenizer.token_id(word) for word in ("red", *str(images))]
            answers[row, : len(ids) + 1] = [*ids, STOP]
        return answers


def mixed_prompts() -> list[Prompt]:
    """Prompts of 1 to 19 images, by colour and by index, shuffled."""
    counts = (1, 2, 3, 5, 7, 11, 19)
    prompts = [
        prompt
        for images in counts
        for naming in ("colour", "index")
        for prompt in make_questions(CONFIG.eval, naming, images).prompts
    ]
    return [prompts[index] for index in np.random.default_rng(0).permutation(len(prompts))]


def spell(count: int) -> str:
    """A number as the tokenizer writes it: digit by digit."""
    return " ".join(["red", *str(count)])


@pytest.mark.parametrize("divisor", [1, 2, 5])
def test_answers_come_in_the_order_of_the_prompts(divisor):
    prompts, model, answered = mixed_prompts(), CountingModel(), []
    answers = answer_prompts(prompts, PROCESSOR, model, CONFIG, rows_divisor=divisor, advance=answered.append)
    assert answers == [spell(len(prompt.images)) for prompt in prompts]
    assert sum(answered) == len(prompts) and len(answered) == len(model.shapes)
    assert len(set(model.shapes)) <= 3
    assert all(rows % divisor == 0 for rows, _, _ in model.shapes)
    assert all(rows * images <= 24 or rows == divisor for rows, _, images in model.shapes)


def test_more_shapes_mean_less_padding():
    padded = {}
    for limit in (1, 2, 7):
        model = CountingModel()
        config = dataclasses.replace(CONFIG, eval=dataclasses.replace(CONFIG.eval, batch_shapes=limit))
        answer_prompts(mixed_prompts(), PROCESSOR, model, config)
        assert len(set(model.shapes)) <= limit
        padded[limit] = sum(rows * images for rows, _, images in model.shapes)
    assert padded[1] > padded[2] > padded[7]


def test_few_prompts_make_no_large_batch():
    model = CountingModel()
    answer_prompts(make_questions(CONFIG.eval, "colour", 1).prompts, PROCESSOR, model, CONFIG)
    assert model.shapes == [(3, 32, 1)]


def test_a_batch_is_filled_up_with_its_last_prompt():
    first, second = make_questions(EvalConfig(questions=2), "colour", 3).prompts
    batch = make_batch([first, second], PROCESSOR, PromptSize(37, 5), 4)
    assert batch.tokens.shape == (4, 37) and batch.pixels.shape == (4, 5, 8, 8, 3)
    np.testing.assert_array_equal(batch.tokens[1:], batch.tokens[[1, 1, 1]])
    np.testing.assert_array_equal(batch.pixels[1:], batch.pixels[[1, 1, 1]])
    assert (batch.pixels[0] != batch.pixels[1]).any()
    assert batch.loss_weights is None


@pytest.mark.parametrize(
    ("words", "text"),
    [(["red", "7", None, "B"], "red 7"), (["red", "7", "B"], "red 7 B"), ([None, "7"], ""), (["\n", "7"], "7")],
)
def test_an_answer_ends_at_the_first_stop_id(words, text):
    ids = np.array([STOP if word is None else PROCESSOR.tokenizer.token_id(word) for word in words], np.int32)
    assert decode_answer(ids, PROCESSOR) == text


def test_an_unreadable_image_is_fatal_and_named():
    prompts = make_questions(CONFIG.eval, "colour", 2).prompts
    broken = prompts[1]._replace(images=(prompts[1].images[0], ImageFile("torn photograph", b"\x89PNG no more")))
    with pytest.raises(UnreadableImage, match="torn photograph"):
        answer_prompts([prompts[0], broken], PROCESSOR, CountingModel(), CONFIG)


def test_a_prompt_beyond_the_models_positions_is_an_error():
    config = dataclasses.replace(
        CONFIG,
        model=dataclasses.replace(CONFIG.model, max_position_embeddings=31),
        data=dataclasses.replace(CONFIG.data, tokens_per_row=29),
    )
    with pytest.raises(ConfigError, match=r"max_position_embeddings is 31; name fewer images"):
        answer_prompts(mixed_prompts(), PROCESSOR, CountingModel(), config)
