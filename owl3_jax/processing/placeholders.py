"""Where images and videos stand in a question that does not say so: before it, a line each, in the order they were given."""

from collections.abc import Iterable
from typing import Literal

from owl3_jax.processing.chat import IMAGE, VIDEO

Kind = Literal["image", "video"]

_PLACEHOLDERS: dict[Kind, str] = {"image": IMAGE, "video": VIDEO}


def with_placeholders(question: str, kinds: Iterable[Kind]) -> str:
    """The question with a placeholder of each kind before it; as it is, if it has placeholders of its own."""
    if IMAGE in question or VIDEO in question:
        return question
    return "".join(f"{_PLACEHOLDERS[kind]}\n" for kind in kinds) + question
