"""Texts and answers of the digit questions, their draws, and the mixture that training sees."""

from collections import Counter

import numpy as np
import pytest

from owl3_jax.data.digits.images import COLOURS, DigitImage, split_ids
from owl3_jax.data.digits.questions import (
    ask_caption,
    ask_colour,
    ask_count,
    ask_index,
    conversation,
    draw_distractors,
    draw_image,
    draw_options,
    prompt,
)
from owl3_jax.data.digits.samples import IMAGE_COUNTS, MOST_QUESTIONS, draw_sample

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
    assert assistant["content"] == "7"


def test_index_choice():
    question = ask_index(IMAGES, 2, options=(1, 7, 3, 9))
    assert (question.kind, question.text) == ("index_choice", "In Image 3, which digit?\nA. 1\nB. 7\nC. 3\nD. 9")
    assert question.answer == "1 A"


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


def test_the_mixture_is_what_its_constants_say():
    ids = split_ids("train")
    samples = [draw_sample(np.random.default_rng(seed), ids) for seed in range(3000)]
    kinds = Counter(question.kind for sample in samples for question in sample.questions)
    turns = sum(kinds.values())
    assert kinds["colour"] / turns >= 0.7
    assert all(kinds[kind] > 0.005 * turns for kind in ("colour_choice", "index", "index_choice", "count", "caption"))
    by_index = sum(any(question.kind.startswith("index") for question in sample.questions) for sample in samples)
    assert 0.07 < by_index / len(samples) < 0.13
    counts = Counter(len(sample.images) for sample in samples)
    for images, weight in IMAGE_COUNTS.items():
        assert counts[images] / len(samples) == pytest.approx(weight / sum(IMAGE_COUNTS.values()), abs=0.03)


def test_samples_ask_about_different_images():
    ids = split_ids("train")
    for seed in range(200):
        sample = draw_sample(np.random.default_rng(seed), ids)
        texts = [question.text.split("\n")[0] for question in sample.questions]
        assert len(set(texts)) == len(texts)
        assert 1 <= len(texts) <= MOST_QUESTIONS + 1
        assert len({image.colour for image in sample.images}) == len(sample.images)
