"""From the turns of a conversation to a prompt: fetches the media, and has them decoded."""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from owl3_jax.serving.budget import Budget, Charge
from owl3_jax.serving.errors import ApiError, invalid
from owl3_jax.serving.generation import View
from owl3_jax.serving.parse import Media, MediaKind, Turn

Medium = bytes | Path
_Contents = Mapping[tuple[str, MediaKind], Medium]  # by URL, and what it leads to

_MOST_BYTES = 2**29  # of one request's media, as they arrive

_STATUS = {"decoder_unavailable": 503}  # of refusals that are not the client's fault, by code


@runtime_checkable
class Fetcher(Protocol):
    """Where media come from."""

    async def fetch(self, url: str, kind: MediaKind, charge: Charge) -> Medium:
        """What is at `url`; its bytes are charged as they arrive. Raises a ValueError that is a `Refusal`."""


@runtime_checkable
class DecodedPrompt(Protocol):
    """A prompt, as `Generation` has it."""

    @property
    def input_ids(self) -> Sequence[int]:
        """Its tokens."""

    @property
    def image_starts(self) -> Sequence[int]:
        """Where the placeholder of each view begins."""

    @property
    def views(self) -> Sequence[View]:
        """What the vision tower sees."""


@runtime_checkable
class Decoders(Protocol):
    """What makes prompts of messages, beside the event loop."""

    async def decode(self, messages: Sequence[Mapping[str, object]], client: str) -> DecodedPrompt:
        """Takes messages of a client in a form of `owl3_jax.processing.conversation`.

        Raises a ValueError that is a `Refusal`.
        """


@runtime_checkable
class Refusal(Protocol):
    """An error whose message is written for the client."""

    code: str


class Preparer:
    """Makes prompts. The media of one request are fetched together, each once."""

    def __init__(self, fetcher: Fetcher, decoders: Decoders, max_media: int, max_text_bytes: int | None = None) -> None:
        """`max_media`: most images, frames and videos that a request may name; `max_text_bytes`: of its texts, in UTF-8."""
        self._fetcher, self._decoders = fetcher, decoders
        self._max_media, self._max_text_bytes = max_media, max_text_bytes
        self._budget = Budget("images and videos", bytes_each=_MOST_BYTES, bytes_all=4 * _MOST_BYTES)

    async def prepare(self, turns: Sequence[Turn], client: str) -> DecodedPrompt:
        """The prompt of a client's conversation. Raises ApiError; a cancelled call leaves nothing behind."""
        media = [part for turn in turns for part in turn.parts if isinstance(part, Media)]
        if (count := sum(len(medium.urls) for medium in media)) > self._max_media:
            raise invalid("messages", f"the request has {count} images and videos; this server takes {self._max_media}")
        self._check_length(turns)
        with self._budget.account(client) as charge:
            contents = await self._fetch(media, charge)
            messages = [_message(turn, contents) for turn in turns]
            try:
                return await self._decoders.decode(messages, client)
            except ValueError as error:
                raise _refused(error, "messages") from error

    def _check_length(self, turns: Sequence[Turn]) -> None:
        """Before anybody counts the tokens, which takes a second for each million of bytes."""
        if self._max_text_bytes is None:
            return
        size = sum(len(part.encode("utf-8", "surrogatepass")) for turn in turns for part in turn.parts if isinstance(part, str))
        if size > self._max_text_bytes:
            message = f"the messages have {size} bytes of text; this server takes {self._max_text_bytes} at the very most"
            raise invalid("messages", message, code="context_length_exceeded")

    async def _fetch(self, media: Sequence[Media], charge: Charge) -> _Contents:
        params = {(url, _kind(medium)): medium.param for medium in reversed(media) for url in medium.urls}
        tasks = {place: asyncio.ensure_future(self._fetch_one(*place, param, charge)) for place, param in params.items()}
        try:
            return dict(zip(tasks, await asyncio.gather(*tasks.values()), strict=True))
        finally:
            for task in tasks.values():
                task.cancel()
            await asyncio.gather(*tasks.values(), return_exceptions=True)

    async def _fetch_one(self, url: str, kind: MediaKind, param: str, charge: Charge) -> Medium:
        try:
            return await self._fetcher.fetch(url, kind, charge)
        except ValueError as error:
            raise _refused(error, param) from error


def _kind(medium: Media) -> MediaKind:
    """What each of its URLs leads to."""
    return "image" if medium.is_list else medium.kind


def _refused(error: ValueError, param: str) -> Exception:
    """For the client if it is written for one; else a mistake of ours."""
    if not isinstance(error, Refusal):
        return error
    return ApiError(_STATUS.get(error.code, 400), error.code, str(error), param=param)


def _message(turn: Turn, contents: _Contents) -> Mapping[str, object]:
    """A text if there is only that, else parts, each of which becomes a line."""
    if turn.role != "user" or not any(isinstance(part, Media) for part in turn.parts):
        return {"role": turn.role, "content": "\n".join(str(part) for part in turn.parts)}
    return {"role": turn.role, "content": [_part(part, contents) for part in turn.parts]}


def _part(part: str | Media, contents: _Contents) -> Mapping[str, object]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    sources = [contents[url, _kind(part)] for url in part.urls]
    return {"type": part.kind, part.kind: sources if part.is_list else sources[0]}
