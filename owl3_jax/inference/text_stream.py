"""Token ids in, text out, as soon as it is final: no split characters, no text that a stop string then takes back."""

from collections.abc import Sequence

from owl3_jax.processing.tokenizer import ChatTokenizer

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"  # at the end: perhaps the first bytes of a character
_CONTEXT = 4  # tokens that are decoded again: the last character has at most 4 bytes, a token at least one


class TextStream:
    """The text of one answer. It ends before the stop string that is complete first; of several, the longest.

    All that `push` and `finish` return, joined, is the decoded ids (special tokens left out) up to that end, however the ids
    were split.
    """

    def __init__(self, tokenizer: ChatTokenizer, stop: Sequence[str] = ()) -> None:
        """`stop`: strings that end the answer."""
        self.stopped = False  # whether a stop string was found
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._pieces: list[str] = []
        self._tail: list[int] = []  # the last tokens that have a text
        self._tail_length = 0  # complete characters in the tail's text
        self._incomplete = ""  # what follows them
        self._held = ""  # perhaps the beginning of a stop string

    @property
    def looks_for_stop(self) -> bool:
        """Whether there are stop strings."""
        return bool(self._stop)

    @property
    def text(self) -> str:
        """All text that was returned."""
        return "".join(self._pieces)

    def push(self, ids: Sequence[int]) -> str:
        """The text that `ids` make final; none once stopped."""
        return self._advance(self._decode(ids))

    def finish(self) -> str:
        """The rest of the text, after the last `push`."""
        rest, self._incomplete = self._advance(self._incomplete), ""
        held, self._held = self._held, ""
        self._pieces.append(held)
        return rest + held

    def _decode(self, ids: Sequence[int]) -> str:
        """The characters that `ids` complete."""
        self._tail += [token for token in ids if self._tokenizer.decode([token])]
        text = self._tokenizer.decode(self._tail)
        length = len(text) - text.endswith(_INCOMPLETE)
        new, self._incomplete = text[self._tail_length : length], text[length:]
        self._tail = self._tail[-_CONTEXT:]
        self._tail_length = len(self._tokenizer.decode(self._tail)) - len(self._incomplete)
        return new

    def _advance(self, new: str) -> str:
        """What becomes final when `new` follows the text so far."""
        if self.stopped:
            return ""
        text = self._held + new
        found = [(text.index(stop) + len(stop), text.index(stop)) for stop in self._stop if stop in text]
        self.stopped = bool(found)
        end = min(found)[1] if found else len(text) - self._possible_stop(text)
        self._held = "" if found else text[end:]
        self._pieces.append(text[:end])
        return text[:end]

    def _possible_stop(self, text: str) -> int:
        """How many of the last characters may be the beginning of a stop string."""
        lengths = (n for stop in self._stop for n in range(1, min(len(stop), len(text) + 1)) if text.endswith(stop[:n]))
        return max(lengths, default=0)
