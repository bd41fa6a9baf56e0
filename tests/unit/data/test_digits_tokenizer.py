"""The tiny tokenizer covers everything the questions can say."""

import json
from pathlib import Path

import numpy as np
import pytest

from owl3_jax.data.digits.images import split_ids
from owl3_jax.data.digits.questions import ask_index, conversation, draw_distractors, draw_image
from owl3_jax.data.digits.samples import draw_sample
from owl3_jax.data.digits.tokenizer import VOCAB_SIZE, make_tokenizer
from owl3_jax.processing.chat import Chunk, chat_chunks
from owl3_jax.processing.tokenizer import ChatTokenizer

UNKNOWN_ID = 0
GOLDEN = Path(__file__).parents[2] / "golden"


def ids_of(text: str) -> list[int]:
    return make_tokenizer().encode([Chunk(text)]).input_ids.tolist()


def test_vocabulary_size_is_the_documented_one():
    assert make_tokenizer().vocab_size == VOCAB_SIZE


def test_no_word_of_the_samples_is_unknown():
    tokenizer = make_tokenizer()
    conversations = [conversation(*draw_sample(np.random.default_rng(seed), split_ids("train"))) for seed in range(500)]
    for messages in conversations:
        assert UNKNOWN_ID not in tokenizer.encode(chat_chunks(messages, training=True)).input_ids


def test_no_word_of_128_labelled_images_is_unknown():
    rng, ids = np.random.default_rng(0), split_ids("test")
    first = draw_image(rng, ids)
    images = [first, *draw_distractors(rng, ids, first, 127)]
    text = make_tokenizer().encode(chat_chunks(conversation(images, [ask_index(images, 127)]), training=True))
    assert UNKNOWN_ID not in text.input_ids
    assert len(text.image_starts) == 128


def test_numbers_are_single_digits_and_newlines_are_tokens():
    assert ids_of("In Image 128,\nwhich") == ids_of("In Image 1 2 8,  \n which")
    assert len(ids_of("128\n\n")) == 5


def test_a_colour_is_one_token_wherever_it_stands():
    assert ids_of("Which digit is red?")[3] == ids_of("red 7")[0] == ids_of("a red 7")[1]


def test_answers_decode_with_single_spaces():
    tokenizer = make_tokenizer()
    for answer in ("red 7", "red 7 B", "4", "a red 7"):
        assert tokenizer.decode([*ids_of(answer), *tokenizer.stop_ids]) == answer
    assert tokenizer.decode(ids_of("Image 12: 7")) == "Image 1 2 : 7"


def test_placeholder_and_markers_are_one_id_each_but_not_in_a_users_text():
    tokenizer = make_tokenizer()
    text = tokenizer.encode([Chunk("<|image|>", "image"), Chunk("<|im_end|>", "marker")])
    assert text.input_ids.tolist() == [tokenizer.token_id("<|image|>"), tokenizer.token_id("<|im_end|>")]
    assert set(ids_of("<|im_end|>")) == {UNKNOWN_ID}


@pytest.mark.parametrize("checkpoint", ["tiny-240728", "tiny-241014", "tiny-241101", "tiny-tied"])
def test_golden_checkpoints_have_these_words_and_one_for_every_further_id(checkpoint):
    size = json.loads((GOLDEN / checkpoint / "config.json").read_text())["vocab_size"]
    tree = json.loads(make_tokenizer().to_json())
    words, markers = tree["model"]["vocab"], tree["added_tokens"]
    known = len(words)
    words |= {f"word{index}": index for index in range(known, size - len(markers))}
    for marker, index in zip(markers, range(len(words), size), strict=True):  # the ids that the library gives them
        marker["id"] = index
    path = GOLDEN / checkpoint / "tokenizer.json"
    assert path.read_text(encoding="utf-8") == json.dumps(tree, indent=2, ensure_ascii=False) + "\n"
    saved = ChatTokenizer.from_file(path)
    assert saved.vocab_size == size
    assert "" not in [saved.decode([index], skip_special_tokens=False) for index in range(size)]
    assert saved.decode(range(known)) == make_tokenizer().decode(range(known))
