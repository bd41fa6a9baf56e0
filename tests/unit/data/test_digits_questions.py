"""Texts and answers of the digit questions, their draws, and the mixture that training sees."""

import re
from collections import Counter
from typing import get_args

import numpy as np
import pytest

from owl3_jax.data.digits.images import COLOURS, DigitImage, split_ids
from owl3_jax.data.digits.questions import (
    QuestionKind,
    ask_caption,
    ask_colour,
    ask_count,
    ask_index,
    conversation,
    describe_by_colour,
    describe_by_index,
    draw_distractors,
    draw_image,
    draw_options,
    prompt,
)
from owl3_jax.data.digits.samples import (
    FEW_IMAGES,
    GROUPED_SHARE,
    IMAGE_COUNTS,
    INDEX_SHARE,
    MOST_QUESTIONS,
    DigitSample,
    draw_sample,
)

IMAGES = [DigitImage(3, 3, "green"), DigitImage(17, 7, "red"), DigitImage(11, 1, "blue")]


def test_colour_question():
    assert conversation(IMAGES, [ask_colour(IMAGES, 1)]) == [
        {"role": "user", "content": "<|image|><|image|><|image|>\nWhich digit is red?"},
        {"role": "assistant", "content": "red 7"},
    ]


def test_colour_choice():
    question = ask_colour(IMAGES, 1, options=(3, 7, 1, 9))
    assert (question.kind, question.answer) == ("colour_choice", "red 7 B")
    assert question.text == "Which digit is red?\nA. 3\nB. 7\nC. 1\nD. 9"


def test_index_question_has_the_papers_form():
    user, assistant = conversation(IMAGES, [ask_index(IMAGES, 1)])
    assert user["content"] == "Image 1: <|image|> Image 2: <|image|> Image 3: <|image|>. In Image 2, which digit?"
    assert assistant["content"] == "Image 2: 7"


def test_index_choice():
    question = ask_index(IMAGES, 2, options=(1, 7, 3, 9))
    assert (question.kind, question.text) == ("index_choice", "In Image 3, which digit?\nA. 1\nB. 7\nC. 3\nD. 9")
    assert question.answer == "Image 3: 1 A"


def test_descriptions_name_images_in_the_order_asked_for():
    colours, indices = describe_by_colour(IMAGES, [2, 0]), describe_by_index(IMAGES, [2, 0])
    assert colours[1:] == ("Describe the images.", "blue 1 green 3")
    assert indices[1:] == ("Describe the images.", "Image 3: 1 Image 1: 3")


def test_images_can_come_in_groups_and_keep_their_numbers():
    messages = conversation(IMAGES, [describe_by_index(IMAGES, [1, 0]), ask_index(IMAGES, 2)], shown=[2, 1])
    assert [message["content"] for message in messages[::2]] == [
        "Image 1: <|image|> Image 2: <|image|>. Describe the images.",
        "Image 3: <|image|>. In Image 3, which digit?",
    ]


def test_count_and_caption():
    assert ask_count(IMAGES)[1:] == ("How many images?", "3")
    assert ask_caption(IMAGES[:1])[1:] == ("Describe the image.", "a green 3")


def test_later_turns_show_no_images():
    messages = conversation(IMAGES, [ask_colour(IMAGES, 1), ask_count(IMAGES)])
    assert [message["content"] for message in messages[2:]] == ["How many images?", "3"]


def test_a_prompt_lacks_the_answer():
    question = ask_colour(IMAGES, 0)
    assert prompt(IMAGES, question) == conversation(IMAGES, [question])[:1]


def test_the_targets_colour_must_be_unique():
    with pytest.raises(ValueError, match="red names more than one of the images"):
        ask_colour([*IMAGES, DigitImage(19, 2, "red")], 1)


@pytest.mark.parametrize("options", [(3, 2, 1, 9), (7, 2, 7, 9)])
def test_options_must_hold_the_right_digit_once(options):
    with pytest.raises(ValueError, match="must hold the right digit 7 exactly once"):
        ask_colour(IMAGES, 1, options)


def test_options_must_be_four():
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        ask_colour(IMAGES, 1, options=(7, 1, 2))


@pytest.mark.parametrize("count", [0, 5, 7, 8, 127])
def test_distractors_are_other_pictures_in_other_colours(count):
    rng, ids = np.random.default_rng(5), split_ids("test")
    target = draw_image(rng, ids)
    distractors = draw_distractors(rng, ids, target, count)
    assert len({image.image_id for image in [target, *distractors]}) == count + 1
    assert {image.image_id for image in distractors} <= set(ids)
    colours = Counter(image.colour for image in distractors)
    assert target.colour not in colours
    assert len(colours) == min(count, len(COLOURS) - 1)


def test_options_are_four_digits_and_the_right_one_stands_everywhere():
    rng = np.random.default_rng(7)
    drawn = [draw_options(rng, 4) for _ in range(400)]
    assert all(len(set(options)) == 4 and set(options) <= set(range(10)) for options in drawn)
    places = Counter(options.index(4) for options in drawn)
    assert [place for place in range(4) if places[place] > 60] == [0, 1, 2, 3]


@pytest.fixture(scope="module")
def drawn() -> list[DigitSample]:
    return [draw_sample(np.random.default_rng(seed), split_ids("train")) for seed in range(3000)]


def test_the_mixture_is_what_its_constants_say(drawn):
    kinds = Counter(question.kind for sample in drawn for question in sample.questions)
    turns = sum(kinds.values())
    assert set(kinds) == set(get_args(QuestionKind))
    assert min(kinds.values()) > 0.005 * turns
    by_index = sum(any(question.kind in ("index", "index_choice", "indices") for question in x.questions) for x in drawn)
    assert by_index / len(drawn) == pytest.approx(INDEX_SHARE, abs=0.03)
    grouped = sum(sample.shown[0] < len(sample.images) for sample in drawn)
    assert 0.07 < grouped / len(drawn) < 0.3 * GROUPED_SHARE  # of 5 in 13 samples; some groups are all images
    counts = Counter(len(sample.images) for sample in drawn)
    for images, weight in IMAGE_COUNTS.items():
        assert counts[images] / len(drawn) == pytest.approx(weight / sum(IMAGE_COUNTS.values()), abs=0.03)


def test_every_image_is_shown_once_and_described_after_it_was_shown(drawn):
    for sample in drawn:
        assert sum(sample.shown) == len(sample.images) and min(sample.shown) >= 0
        assert len(sample.shown) == len(sample.questions)
        shown = 0
        for question, count in zip(sample.questions, sample.shown, strict=True):
            shown += count
            named = [int(number) for number in re.findall(r"Image (\d+)", question.answer)]
            assert all(number <= shown for number in named)
            by_colour = [word for word in question.answer.split() if word in COLOURS]
            assert set(by_colour) <= {image.colour for image in sample.images[:shown]}


def test_answers_are_right(drawn):
    for sample in drawn:
        colours = Counter(image.colour for image in sample.images)
        right = {image.colour: str(image.digit) for image in sample.images if colours[image.colour] == 1}
        right |= {f"Image {number}:": str(image.digit) for number, image in enumerate(sample.images, 1)}
        for question in sample.questions:
            for name, digit in re.findall(rf"(Image \d+:|{'|'.join(COLOURS)}) (\d)", question.answer):
                assert right[name] == digit


def test_samples_ask_about_different_images(drawn):
    for sample in drawn:
        asked = [question.text.split("\n")[0] for question in sample.questions if not question.kind.endswith("s")]
        assert len(set(asked)) == len(asked) <= MOST_QUESTIONS + 2
        assert sample.questions
        assert len({image.colour for image in sample.images}) == min(len(sample.images), len(COLOURS))


def test_the_first_stage_shows_few_images():
    samples = [draw_sample(np.random.default_rng(seed), split_ids("train"), FEW_IMAGES) for seed in range(300)]
    assert {len(sample.images) for sample in samples} == set(FEW_IMAGES)
