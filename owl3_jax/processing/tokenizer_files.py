"""The tokenizer of a checkpoint directory: tokenizer.json, or the files that Qwen2's slow tokenizer is made of."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from owl3_jax.config import JsonTree
from owl3_jax.formats.json_files import read_json_object
from owl3_jax.host.foreign import foreign_errors
from owl3_jax.processing.tokenizer import ChatTokenizer

FAST = "tokenizer.json"
SLOW = (VOCABULARY, MERGES, CONFIG) = ("vocab.json", "merges.txt", "tokenizer_config.json")

# Qwen2 never merges across these: contractions, words, single digits, punctuation, line ends, spaces.
_PIECE = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def has_tokenizer(directory: Path) -> bool:
    """Whether a directory has the files of a tokenizer."""
    return (directory / FAST).exists() or all((directory / name).exists() for name in SLOW)


def read_tokenizer(directory: Path) -> ChatTokenizer:
    """The tokenizer of a directory: tokenizer.json if it is there, else vocab.json, merges.txt and tokenizer_config.json.

    Raises:
        FileNotFoundError: neither is there.
        ValueError: the content of a file is not what its name says, or is incomplete.
    """
    if (directory / FAST).exists():
        return ChatTokenizer.from_file(directory / FAST)
    missing = [name for name in SLOW if not (directory / name).exists()]
    if missing:
        raise FileNotFoundError(
            f"{directory} has no tokenizer: neither {FAST}, nor {', '.join(SLOW)} ({', '.join(missing)} missing); "
            "copy them from the checkpoint"
        )
    added = _added_tokens(directory / CONFIG)
    with foreign_errors(ValueError, f"{directory}: {VOCABULARY} and {MERGES} do not form a tokenizer"):
        vocabulary, merges = models.BPE.read_file(str(directory / VOCABULARY), str(directory / MERGES))
        tokenizer = byte_level_bpe(vocabulary, merges, list(added.values()))
    _check_ids(tokenizer, added, directory / CONFIG)
    return ChatTokenizer(tokenizer)


def byte_level_bpe(
    vocabulary: Mapping[str, int], merges: Sequence[tuple[str, str]], added: list[tokenizers.AddedToken]
) -> tokenizers.Tokenizer:
    """A tokenizer that works like Qwen2's: NFC, Qwen2's pieces, byte-pair merges within each.

    Args:
        vocabulary: token, spelt in byte-level letters, to its id.
        merges: pairs of tokens, in the order in which they merge.
        added: tokens that are found before everything else; each gets the next free id, in their order.
    """
    tokenizer = tokenizers.Tokenizer(models.BPE(dict(vocabulary), list(merges)))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(_PIECE), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(added)
    return tokenizer


def _added_tokens(path: Path) -> dict[int, tokenizers.AddedToken]:
    """The tokens of `added_tokens_decoder`, by id and in the order of ids."""
    try:
        entries = read_json_object(path)["added_tokens_decoder"]
        return {int(index): _added_token(entries[index]) for index in sorted(entries, key=int)}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} has no readable added_tokens_decoder, which lists the special tokens: {error!r}") from error


def _added_token(entry: JsonTree) -> tokenizers.AddedToken:
    options = ("special", "normalized", "lstrip", "rstrip", "single_word")
    return tokenizers.AddedToken(entry["content"], **{name: entry.get(name, False) for name in options})


def _check_ids(tokenizer: tokenizers.Tokenizer, added: Mapping[int, tokenizers.AddedToken], path: Path) -> None:
    for index, token in added.items():
        given = tokenizer.token_to_id(token.content)
        if given != index:
            raise ValueError(f"{path} gives {token.content!r} the id {index}, after {VOCABULARY} it would be {given}")
