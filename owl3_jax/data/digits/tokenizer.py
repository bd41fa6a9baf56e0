"""A word-level tokenizer over the closed vocabulary of the digit questions, built on the fly.

Numbers are spelt in single digits, a newline is a token, `<|image|>` is one id. A word has the same id everywhere, so that
`red` is the same token in a question and in its answer. Id 0, the padding of batches, is the unknown word.
"""

import tokenizers
from tokenizers import models, pre_tokenizers

from owl3_jax.data.digits.images import COLOURS
from owl3_jax.data.digits.questions import LETTERS
from owl3_jax.processing.chat import IMAGE, MARKERS, ROLES
from owl3_jax.processing.tokenizer import ChatTokenizer

_UNKNOWN = "<|unknown|>"
_WORDS = ["Which", "digit", "is", "In", "Image", "which", "How", "many", "images", "Describe", "the", "image", "a"]
_TOKEN = r"[A-Za-z]+|[0-9]|\n|[^\sA-Za-z0-9]"


def make_tokenizer() -> ChatTokenizer:
    """The tokenizer of the digits data set; decoding joins words with single spaces (`red 7`)."""
    words = [_UNKNOWN, "\n", *"?.:,", *"0123456789", *LETTERS, *ROLES, *COLOURS, *_WORDS]
    model = models.WordLevel({word: index for index, word in enumerate(words)}, unk_token=_UNKNOWN)
    tokenizer = tokenizers.Tokenizer(model)
    # With `invert` the pattern is what to keep: the spaces between words are dropped.
    tokenizer.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(_TOKEN), behavior="removed", invert=True)
    tokenizer.add_special_tokens([*MARKERS, IMAGE])
    return ChatTokenizer(tokenizer)


VOCAB_SIZE = 48  # of `make_tokenizer()`; the least that model.vocab_size can be
