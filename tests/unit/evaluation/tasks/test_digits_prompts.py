"""Questions of the evaluation: only held-out pictures, one right answer."""

import numpy as np
import pytest

from owl3_jax.config import ConfigError, EvalConfig
from owl3_jax.data.digits.images import COLOURS, digit_image, encoded_image, split_ids
from owl3_jax.evaluation.data_root import DataError, DataRoot
from owl3_jax.evaluation.tasks.digits_distractors import DIGITS_DISTRACTORS
from owl3_jax.evaluation.tasks.digits_exact import DIGITS_EXACT
from owl3_jax.evaluation.tasks.digits_prompts import (
    Scene,
    check_counts,
    decoded_picture,
    draw_scene,
    draw_target,
    held_out_ids,
    make_question,
    open_picture,
)
from owl3_jax.processing.images import load_image

RED, BLUE = digit_image(11, "red"), digit_image(13, "blue")


@pytest.fixture(scope="module")
def training_pictures() -> set[bytes]:
    """The pixels of every picture that a training sample can show, in every colour."""
    pictures = [digit_image(image_id, colour) for image_id in split_ids("train").tolist() for colour in COLOURS]
    return {load_image(encoded_image(picture), "").tobytes() for picture in pictures}


def test_no_question_shows_a_training_picture(training_pictures):
    data = DataRoot(settings=EvalConfig(questions=7, distractor_questions=3, distractor_images=(1, 5, 100)))
    names = {name for task in (DIGITS_EXACT, DIGITS_DISTRACTORS) for each in task.questions(data) for name in each.images}
    assert len(names) > 1000
    assert not {open_picture(data, name).tobytes() for name in names} & training_pictures


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
    question = make_question(Scene([RED, BLUE], 1), "colour", name="7")
    assert question.text == "<|image|><|image|>\nWhich digit is blue?" and question.id == "colour/2/7"
    assert question.images == ("digits/11/red", "digits/13/blue")
    assert open_picture(DataRoot(), "digits/11/red") is decoded_picture(RED) == load_image(encoded_image(RED), "")
    assert (question.target, question.gold, question.options) == (1, f"blue {BLUE.digit}", ())


def test_a_choice_by_index_as_in_the_paper():
    wrong = [digit for digit in range(10) if digit != BLUE.digit][:3]
    question = make_question(Scene([RED, BLUE], 1), "index", [wrong[0], wrong[1], BLUE.digit, wrong[2]], name="", group="3")
    asked = f"In Image 2, which digit?\nA. {wrong[0]}\nB. {wrong[1]}\nC. {BLUE.digit}\nD. {wrong[2]}"
    assert question.text == f"Image 1: <|image|> Image 2: <|image|>. {asked}"
    assert (question.gold, question.group, question.split) == ("C", "index/2/3", "by index")


@pytest.mark.parametrize(
    "name", ["digits/1797/red", "digits/13/pink", "digits/x/red", "digits/13", "13/red", "digits/99999/red"]
)
def test_a_name_of_no_picture_is_an_error(name):
    with pytest.raises(DataError, match="there is no digit"):
        open_picture(DataRoot(), name)


def test_more_images_than_are_held_out_is_an_error():
    check_counts("distractor_images", [359, 1])
    with pytest.raises(ConfigError, match=r"eval\.distractor_images names 360 images, but only 359"):
        check_counts("distractor_images", [1, 360])
