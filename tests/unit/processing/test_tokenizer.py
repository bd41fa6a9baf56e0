"""Chunk-wise tokenisation: with the released tokenizer, and with stand-ins (its ids in a word list, its kind in a tiny BPE)."""

import numpy as np
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from owl3_jax.processing.chat import IMAGE, MARKERS, MEDIA_MARKERS, Chunk, chat_chunks
from owl3_jax.processing.tokenizer import ChatTokenizer
from tests.qwen import chat_tokenizer, qwen_tokenizer

IMAGE_ID = 200_003
# Ids of the released tokenizer, as far as the worked examples need them; the placeholder has one id in these.
RELEASED_IDS = {
    "<|endoftext|>": 151643, "<|im_start|>": 151644, "<|im_end|>": 151645, "\n": 198, "system": 8948, "user": 872,
    "assistant": 77091, "Describe": 74785, "this": 419, "image": 2168, ".": 13, "Compare": 27374, "?": 0, IMAGE: IMAGE_ID,
}  # fmt: skip


def word_tokenizer(specials: list[str]) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.WordLevel(RELEASED_IDS, unk_token="?"))
    pattern = tokenizers.Regex(r"[A-Za-z]+|\n|[^\sA-Za-z]")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(pattern, behavior="removed", invert=True)
    tokenizer.add_special_tokens(specials)
    return tokenizer


def byte_pair_tokenizer() -> tokenizers.Tokenizer:
    """A byte-level BPE in which two newlines are one token, as in the released tokenizers, and `<|image|>` is none."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(r"\n+|[A-Za-z]+|[^\sA-Za-z]+"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(special_tokens=list(MARKERS), vocab_size=265, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["\n\n", "user", "\n\n", "user"], trainer)
    return tokenizer


@pytest.fixture
def released() -> ChatTokenizer:
    return ChatTokenizer(word_tokenizer([*MARKERS, IMAGE]))


def test_worked_example_of_one_image(released):
    chunks = chat_chunks([{"role": "user", "content": "<|image|>\nDescribe this image."}], training=False)
    text = released.encode(chunks)
    assert text.input_ids.tolist() == [
        151644, 8948, 198, 151645, 198, 151644, 872, 198, IMAGE_ID, 198, 74785, 419, 2168, 13, 151645, 198, 151644, 77091, 198
    ]  # fmt: skip
    assert text.image_starts.tolist() == [8]
    assert [array.dtype for array in text] == [np.int32, np.bool_, np.int32]


def test_worked_example_of_two_adjacent_images(released):
    text = released.encode(chat_chunks([{"role": "user", "content": "<|image|><|image|>\nCompare."}], training=False))
    assert len(text.input_ids) == 18
    assert text.image_starts.tolist() == [8, 9]


def test_labels_cover_the_answer_and_its_ends(released):
    messages = [{"role": "user", "content": "Describe"}, {"role": "assistant", "content": "this image."}]
    text = released.encode(chat_chunks(messages, training=True))
    assert text.input_ids[text.labels].tolist() == [419, 2168, 13, 151645, 151643]
    assert text.labels.tolist() == [False] * (len(text.labels) - 5) + [True] * 5


def test_a_placeholder_without_a_token_is_spelt_out_and_starts_at_its_first_id():
    tokenizer = ChatTokenizer(byte_pair_tokenizer())
    text = tokenizer.encode([Chunk("a"), Chunk(IMAGE, "image"), Chunk(IMAGE, "image"), Chunk("b")])
    assert tokenizer.decode(text.input_ids) == f"a{IMAGE}{IMAGE}b"
    length = (len(text.input_ids) - 2) // 2
    assert length > 1
    assert text.image_starts.tolist() == [1, 1 + length]


def test_a_users_marker_is_not_parsed_as_one(released):
    for tokenizer in (released, ChatTokenizer(byte_pair_tokenizer())):
        chunks = chat_chunks([{"role": "user", "content": "<|im_end|><|endoftext|>"}], training=False)
        ids = tokenizer.encode(chunks).input_ids.tolist()
        im_end, end_of_text = tokenizer.stop_ids
        assert ids.count(im_end) == 2  # the system turn's and the user turn's own
        assert end_of_text not in ids
    assert "<|im_end|><|endoftext|>" in tokenizer.decode(ids)


def test_chunks_are_tokenised_by_themselves():
    tokenizer = ChatTokenizer(byte_pair_tokenizer())
    two_newlines = tokenizer.token_id("ĊĊ")
    user = chat_chunks([{"role": "user", "content": "\nHi"}], training=True)
    assert two_newlines in tokenizer.encode(user).input_ids  # the role's line and the text are one chunk
    answer = chat_chunks([{"role": "user", "content": "a"}, {"role": "assistant", "content": "\nHi"}], training=True)
    assert two_newlines not in tokenizer.encode(answer).input_ids  # header and answer are two


def test_no_chunks_are_no_tokens(released):
    text = released.encode([])
    assert text.input_ids.shape == text.labels.shape == text.image_starts.shape == (0,)


def test_half_a_surrogate_pair_is_refused_by_name(released):
    with pytest.raises(ValueError, match=r"'a \\ud800' contains half of a surrogate pair"):
        released.encode([Chunk("a \ud800")])


def test_a_saved_tokenizer_reads_back(released, tmp_path):
    released.save(tmp_path / "tokenizer.json")
    again = ChatTokenizer.from_file(tmp_path / "tokenizer.json")
    chunks = chat_chunks([{"role": "user", "content": "<|image|>\nDescribe <|im_end|>"}], training=False)
    np.testing.assert_array_equal(again.encode(chunks).input_ids, released.encode(chunks).input_ids)


def test_the_given_tokenizer_is_not_changed():
    original = word_tokenizer([*MARKERS, IMAGE])
    ChatTokenizer(original)
    assert original.encode("<|im_end|>").ids == [151645]


def test_vocabulary_size_is_the_highest_id_plus_one(released):
    assert released.vocab_size == IMAGE_ID + 1
    released.check_embedding_rows(IMAGE_ID + 1)
    with pytest.raises(ValueError, match=f"ids up to {IMAGE_ID}, model.vocab_size {IMAGE_ID} is too small"):
        released.check_embedding_rows(IMAGE_ID)


def test_a_tokenizer_without_the_markers_is_refused():
    words = tokenizers.Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    with pytest.raises(ValueError, match=r"no token '<\|im_start\|>'"):
        ChatTokenizer(words)


def test_a_file_that_is_no_tokenizer_is_named(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json is not a readable tokenizer\.json"):
        ChatTokenizer.from_file(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer.json").write_bytes("Ä".encode("latin-1"))
    with pytest.raises(ValueError, match=r"tokenizer\.json is not a readable tokenizer\.json: .*utf-8"):
        ChatTokenizer.from_file(tmp_path / "tokenizer.json")
    with pytest.raises(FileNotFoundError):
        ChatTokenizer.from_file(tmp_path / "missing.json")


MEDIA = [
    Chunk("user\n"),
    Chunk("<|start_cut|>", "media", continues=True),
    Chunk("2*3\n", continues=True),
    Chunk(IMAGE, "image"),
]


def test_media_markers_are_one_id_where_the_tokenizer_has_them():
    text = chat_tokenizer(*MEDIA_MARKERS).encode(MEDIA)
    assert text.input_ids.tolist() == [872, 198, 151646, 17, 9, 18, 198, 27, 91, 1805, 91, 29]
    assert text.image_starts.tolist() == [7]


def test_media_markers_are_spelt_out_where_it_has_not():
    text = chat_tokenizer().encode(MEDIA)
    assert text.input_ids.tolist() == [872, 198, 27, 91, 2468, 41317, 91, 29, 17, 9, 18, 198, 27, 91, 1805, 91, 29]
    assert text.image_starts.tolist() == [12]


def test_what_is_spelt_out_is_one_text_with_its_neighbours():
    chunks = [Chunk(IMAGE, "image"), Chunk("<|end_cut|>", "media", continues=True), Chunk("?!\n", continues=True)]
    whole = qwen_tokenizer().encode("<|end_cut|>?!\n").ids
    assert chat_tokenizer().encode(chunks).input_ids.tolist()[5:] == whole
    apart = qwen_tokenizer().encode("<|end_cut|>").ids + qwen_tokenizer().encode("?!\n").ids
    assert whole != apart


def test_chunks_that_do_not_continue_stay_apart():
    ids = chat_tokenizer().encode([Chunk("\n"), Chunk("\n")]).input_ids.tolist()
    assert ids == [198, 198] != chat_tokenizer().encode([Chunk("\n"), Chunk("\n", continues=True)]).input_ids.tolist() == [271]


@pytest.mark.parametrize("special", [True, False])
def test_a_users_media_marker_is_text_however_the_checkpoint_declares_it(special):
    tokenizer = chat_tokenizer(*MEDIA_MARKERS, IMAGE, special=special)
    typed = "".join(MEDIA_MARKERS)
    ids = tokenizer.encode([Chunk(typed)]).input_ids
    assert (ids < 151643).all()
    assert tokenizer.decode(ids) == typed
    assert tokenizer.encode([Chunk(IMAGE, "image")]).input_ids.tolist() == [151650]


def test_special_tokens_in_text_are_parsed_when_asked():
    typed = "a<|im_end|><|end_cut|>"
    ids = chat_tokenizer(*MEDIA_MARKERS).encode([Chunk(typed)], parse_special_tokens=True).input_ids.tolist()
    assert ids == [64, 151645, 151647]
