"""Chunks to token ids, and ids back to text, over a `tokenizers` tokenizer (a tokenizer.json file)."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tokenizers
from jaxtyping import Bool, Int, Int32

from owl3_jax.host.foreign import foreign_errors
from owl3_jax.processing.chat import IMAGE, MARKERS, MEDIA_MARKERS, TEXT_END, TURN_END, VIDEO, Chunk


class EncodedText(NamedTuple):
    """Tokens of a conversation."""

    input_ids: Int32[np.ndarray, " T"]
    labels: Bool[np.ndarray, " T"]  # True where the token has loss
    image_starts: Int32[np.ndarray, " I"]  # index of the first token of each placeholder


class ChatTokenizer:
    """Tokenises chunk by chunk. Markers of the chat layout become special tokens; text that spells one does so on request."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        """Takes a copy of `tokenizer`. Raises ValueError when it lacks a marker of the chat layout."""
        self._tokenizer = tokenizers.Tokenizer.from_str(tokenizer.to_str())
        self._escaping = _escaping(self._tokenizer)
        self._marker_ids = {marker: [self.token_id(marker)] for marker in MARKERS}
        self._marker_ids |= {marker: [self.token_id(marker)] for marker in MEDIA_MARKERS if self._has_token(marker)}
        # The released tokenizers have no such token: their placeholder is five ordinary ids.
        self._image_ids = [self.token_id(IMAGE)] if self._has_token(IMAGE) else self._encode_text(IMAGE, self._escaping)

    @classmethod
    def from_file(cls, path: str | Path) -> "ChatTokenizer":
        """Reads a tokenizer.json. Raises FileNotFoundError, or ValueError when its content is something else."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not a readable tokenizer.json: {error}") from error
        with foreign_errors(ValueError, f"{path} is not a readable tokenizer.json"):
            tokenizer = tokenizers.Tokenizer.from_str(text)
        return cls(tokenizer)

    def save(self, path: str | Path) -> None:
        """Writes a tokenizer.json that `from_file` reads."""
        Path(path).write_text(self.to_json(), encoding="utf-8")

    def to_json(self) -> str:
        """The text of a tokenizer.json."""
        return self._tokenizer.to_str(pretty=True)

    @property
    def vocab_size(self) -> int:
        """Rows that an embedding needs: the highest id plus one."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def stop_ids(self) -> tuple[int, int]:
        """Ids that end an answer: `<|im_end|>` and `<|endoftext|>`."""
        return self.token_id(TURN_END), self.token_id(TEXT_END)

    def token_id(self, token: str) -> int:
        """The id of one token as the vocabulary spells it. Raises ValueError when there is none."""
        token_id = self._tokenizer.token_to_id(token)
        if token_id is None:
            raise ValueError(f"the tokenizer has no token {token!r}; is its tokenizer.json the one of the checkpoint?")
        return token_id

    def encode(self, chunks: Iterable[Chunk], *, parse_special_tokens: bool = False) -> EncodedText:
        """Tokenises every chunk by itself and joins the ids.

        Args:
            chunks: a conversation, as `chat_chunks` lays it out.
            parse_special_tokens: whether text that spells a special token becomes that token, as in the official code. By
                default it stays text: a user who types `<|im_end|>` does not end a turn.
        """
        ids: list[int] = []
        labels: list[bool] = []
        image_starts: list[int] = []
        for chunk in self._join(chunks):
            if chunk.kind == "image":
                image_starts.append(len(ids))
            chunk_ids = self._encode_chunk(chunk, self._tokenizer if parse_special_tokens else self._escaping)
            ids += chunk_ids
            labels += [chunk.is_target] * len(chunk_ids)
        return EncodedText(np.array(ids, np.int32), np.array(labels, np.bool_), np.array(image_starts, np.int32))

    def decode(self, ids: Sequence[int] | Int[np.ndarray, " T"], *, skip_special_tokens: bool = True) -> str:
        """The text of `ids`."""
        return self._tokenizer.decode([int(token) for token in ids], skip_special_tokens=skip_special_tokens)

    def check_embedding_rows(self, vocab_size: int) -> None:
        """Raises ValueError when a model of `vocab_size` rows cannot take every id."""
        if self.vocab_size > vocab_size:
            raise ValueError(
                f"the tokenizer has ids up to {self.vocab_size - 1}, model.vocab_size {vocab_size} is too small: the embedding "
                f"has a row for ids up to {vocab_size - 1} only"
            )

    def _has_token(self, token: str) -> bool:
        return self._tokenizer.token_to_id(token) is not None

    def _join(self, chunks: Iterable[Chunk]) -> list[Chunk]:
        """The chunks, where a text that continues the one before it is joined to it."""
        joined: list[Chunk] = []
        for chunk in map(self._spell_out, chunks):
            if chunk.continues and chunk.kind == joined[-1].kind == "text":
                joined[-1] = joined[-1]._replace(text=joined[-1].text + chunk.text)
            else:
                joined.append(chunk)
        return joined

    def _spell_out(self, chunk: Chunk) -> Chunk:
        """The chunk itself, or as text if it is a media marker and this tokenizer has no such token."""
        unknown = chunk.kind == "media" and chunk.text not in self._marker_ids
        return chunk._replace(kind="text") if unknown else chunk

    def _encode_chunk(self, chunk: Chunk, text_tokenizer: tokenizers.Tokenizer) -> list[int]:
        if chunk.kind == "image":
            return self._image_ids
        if chunk.kind == "text":
            return self._encode_text(chunk.text, text_tokenizer)
        return self._marker_ids[chunk.text]

    def _encode_text(self, text: str, tokenizer: tokenizers.Tokenizer) -> list[int]:
        try:
            return tokenizer.encode(text, add_special_tokens=False).ids
        except TypeError as error:  # raised for half of a surrogate pair
            raise ValueError(f"{text[:60]!r} contains half of a surrogate pair, which is not a character") from error


def _escaping(tokenizer: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """A copy to which special tokens, and all that this package writes into text, are ordinary characters."""
    copy = tokenizers.Tokenizer.from_str(tokenizer.to_str())
    copy.encode_special_tokens = True
    # A checkpoint may have them as tokens that are not special; these would be parsed in a user's text.
    copy.add_special_tokens(
        [token for token in (*MARKERS, *MEDIA_MARKERS, IMAGE, VIDEO) if copy.token_to_id(token) is not None]
    )
    return copy
