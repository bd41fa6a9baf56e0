"""Questions of the evaluation: only held-out pictures, one right answer."""

import numpy as np
import pytest

from owl3_jax.config import ConfigError, EvalConfig
from owl3_jax.data.digits.images import COLOURS, digit_image, encoded_image, split_ids
from owl3_jax.evaluation.tasks import make_tasks
from owl3_jax.evaluation.tasks.digits_prompts import (
    Scene,
    check_counts,
    decoded_image,
    draw_scene,
    draw_target,
    held_out_ids,
    make_card,
    make_prompt,
)
from owl3_jax.processing.images import load_image

RED, BLUE = digit_image(11, "red"), digit_image(13, "blue")


@pytest.fixture(scope="module")
def training_pictures() -> set[bytes]:
    """The pixels of every picture that a training sample can show, in every colour."""
    pictures = [digit_image(image_id, colour) for image_id in split_ids("train").tolist() for colour in COLOURS]
    return {load_image(encoded_image(picture), "").tobytes() for picture in pictures}


def test_no_question_shows_a_training_picture(training_pictures):
    config = EvalConfig(questions=7, distractor_questions=3)
    prompts = [prompt for task in make_tasks(config) for prompt in task.prompts()]
    shown = {image.tobytes() for prompt in prompts for image in prompt.images}
    assert len(shown) > 1000
    assert not shown & training_pictures


def test_held_out_ids_are_no_training_ids():
    assert not set(held_out_ids().tolist()) & set(split_ids("train").tolist())


@pytest.mark.parametrize("count", [1, 2, 8, 13, 127])
def test_the_target_has_its_colour_and_its_picture_for_itself(count):
    for seed in range(11):
        rng = np.random.default_rng(seed)
        target = draw_target(rng)
        scene = draw_scene(rng, target, count)
        assert scene.images[scene.target] == target
        assert len(scene.images) == len({image.image_id for image in scene.images}) == count
        assert [image.colour for image in scene.images].count(target.colour) == 1
        assert {image.image_id for image in scene.images} <= set(held_out_ids().tolist())


def test_up_to_eight_images_all_colours_differ():
    rng = np.random.default_rng(0)
    scene = draw_scene(rng, draw_target(rng), 8)
    assert {image.colour for image in scene.images} == set(COLOURS)


def test_the_target_stands_anywhere():
    rng = np.random.default_rng(0)
    assert {draw_scene(rng, draw_target(rng), 5).target for _ in range(101)} == set(range(5))


def test_a_free_question_by_colour():
    prompt = make_prompt(Scene([RED, BLUE], 1), "colour", name="7")
    assert prompt.messages == [{"role": "user", "content": "<|image|><|image|>\nWhich digit is blue?"}]
    assert prompt.id == "colour/2/7"
    assert prompt.images == [load_image(encoded_image(picture), "") for picture in (RED, BLUE)]
    assert prompt.images[0] is decoded_image(RED)
    question = prompt.question
    assert make_card(question, "", is_right=False).image_names == ["held-out digit 11 in red", "held-out digit 13 in blue"]
    assert (question.target, question.expected, question.options, question.right_option) == (1, f"blue {BLUE.digit}", (), None)


def test_a_choice_by_index_as_in_the_paper():
    wrong = [digit for digit in range(10) if digit != BLUE.digit][:3]
    prompt = make_prompt(Scene([RED, BLUE], 1), "index", [wrong[0], wrong[1], BLUE.digit, wrong[2]], name="")
    text = f"In Image 2, which digit?\nA. {wrong[0]}\nB. {wrong[1]}\nC. {BLUE.digit}\nD. {wrong[2]}"
    assert prompt.question.text == text
    assert prompt.messages == [{"role": "user", "content": f"Image 1: <|image|> Image 2: <|image|>. {text}"}]
    assert prompt.question.expected == f"Image 2: {BLUE.digit} C"
    assert prompt.question.right_option == 2


def test_more_images_than_are_held_out_is_an_error():
    check_counts("distractor_images", [359, 1])
    with pytest.raises(ConfigError, match=r"eval\.distractor_images names 360 images, but only 359"):
        check_counts("distractor_images", [1, 360])
