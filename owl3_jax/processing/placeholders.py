"""Where images and videos belong in a question that does not say so: before it, a line each, in the order they were given."""

from collections.abc import Iterable
from typing import Literal

from owl3_jax.processing.chat import IMAGE, VIDEO, Message

Kind = Literal["image", "video"]

_PLACEHOLDERS: dict[Kind, str] = {"image": IMAGE, "video": VIDEO}


def with_placeholders(question: str, kinds: Iterable[Kind]) -> str:
    """The question with a placeholder of each kind before it; as it is, if it has placeholders of its own."""
    return _put_before(question, [_PLACEHOLDERS[kind] for kind in kinds])


def as_messages(question: str, images: int, videos: int) -> list[Message]:
    """One user message; a question without placeholders gets those of the images, then those of the videos."""
    return [{"role": "user", "content": _put_before(question, [IMAGE] * images + [VIDEO] * videos)}]


def _put_before(question: str, placeholders: Iterable[str]) -> str:
    if IMAGE in question or VIDEO in question:
        return question
    return "".join(f"{placeholder}\n" for placeholder in placeholders) + question
