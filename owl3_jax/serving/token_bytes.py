"""What each token of a vocabulary spells, in bytes: a token may be a part of a character."""

import functools
import json

import tokenizers

from owl3_jax.processing.tokenizer import ChatTokenizer


class TokenBytes:
    """The bytes of tokens, by id."""

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        text = tokenizer.to_json()
        self._tokenizer = tokenizers.Tokenizer.from_str(text)
        self._is_byte_level = "ByteLevel" in json.dumps(json.loads(text)["decoder"])
        self._added = {token.content for token in self._tokenizer.get_added_tokens_decoder().values()}

    def __getitem__(self, token: int) -> bytes:
        """Nothing for an id that the vocabulary does not have: the model's embedding may be larger."""
        spelling = self._tokenizer.id_to_token(token)
        if spelling is None:
            return b""
        if not self._is_byte_level or spelling in self._added:
            return spelling.encode("utf-8")
        return bytes(_byte_of_letter()[letter] for letter in spelling)

    @functools.cached_property
    def longest(self) -> int | None:
        """Bytes of the longest token; None if one token may stand for any number of bytes, those of an unknown word."""
        if not self._is_byte_level:
            return None
        return max(map(len, self._tokenizer.get_vocab().keys() - self._added))  # a character for each byte


@functools.cache
def _byte_of_letter() -> dict[str, int]:
    """Byte-level vocabularies spell a byte as its own character where that is printable, else as the next from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return {chr(byte if byte in printable else next(others)): byte for byte in range(256)}
