"""Requests as bytes, made by a thread ahead of the load: the load's clock never waits for a JPEG."""

import asyncio
import base64
import collections
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from owl3_jax.serving.bench.pictures import Pictures
from owl3_jax.serving.bench.workload import Conversation

_BYTES_AHEAD = 512 << 20  # of requests that wait to be sent
_AHEAD = 256  # most of them: the load begins when they are there
_BYTES_OF_TEXT = 4096  # about as many around the images

Message = Mapping[str, object]


@dataclasses.dataclass(frozen=True)
class RequestOptions:
    """What all requests have in common."""

    model: str
    max_tokens: int
    temperature: float
    extra: Mapping[str, object] = dataclasses.field(default_factory=dict)  # other fields of the request
    question_first: bool = False  # before the images instead of after them

    def body(self, messages: Sequence[Message]) -> bytes:
        """A request for the next message, streamed, with its usage."""
        fields = {
            "model": self.model,
            "messages": messages,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        return json.dumps({**fields, **self.extra}).encode()


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A conversation that can begin at once."""

    conversation: Conversation
    body: bytes  # of the first request
    first_message: Message | None  # for the requests after it; None if there are none


class Preparer:
    """Makes requests of conversations.

    Args:
        pictures: where their pictures come from.
        variant: of the pictures.
        options: of the requests.
    """

    def __init__(self, pictures: Pictures, variant: int, options: RequestOptions) -> None:
        self._pictures, self._variant, self._options = pictures, variant, options
        self._shared_parts: list[Message] = []

    def prepare(self, conversation: Conversation) -> Prepared:
        """The first request. Raises what `Pictures.get` raises."""
        question: Message = {"type": "text", "text": conversation.questions[0]}
        images = self._image_parts(conversation)
        content = [question, *images] if self._options.question_first else [*images, question]
        message = {"role": "user", "content": content}
        return Prepared(conversation, self._options.body([message]), message if len(conversation.questions) > 1 else None)

    def bytes_of(self, conversation: Conversation) -> int:
        """About what a prepared one takes."""
        copies = 2 if len(conversation.questions) > 1 else 1
        return copies * (_BYTES_OF_TEXT + len(conversation.pictures) * self._pictures.typical_bytes * 4 // 3)

    def _image_parts(self, conversation: Conversation) -> list[Message]:
        if not conversation.is_shared:
            return [self._image_part(number) for number in conversation.pictures]
        self._shared_parts = self._shared_parts or [self._image_part(number) for number in conversation.pictures]
        return self._shared_parts

    def _image_part(self, number: int) -> Message:
        picture = self._pictures.get(number, self._variant)
        encoded = base64.b64encode(picture.content).decode("ascii")
        return {"type": "image_url", "image_url": {"url": f"data:{picture.media_type};base64,{encoded}"}}


class Stock:
    """Prepared conversations in their order, as many ahead as fit in memory. A context manager."""

    def __init__(
        self, conversations: Iterator[Conversation], preparer: Preparer, limit: int = _BYTES_AHEAD, most: int = _AHEAD
    ) -> None:
        """`limit`: bytes of prepared requests, about; `most`: how many. One is prepared at least."""
        self._conversations, self._preparer, self._limit, self._most = conversations, preparer, limit, most
        self._thread = ThreadPoolExecutor(1, "prepare-requests")
        self._waiting: collections.deque[tuple[int, Future[Prepared]]] = collections.deque()
        self._bytes = 0
        self._order()

    def __enter__(self) -> "Stock":
        return self

    def __exit__(self, *exception: object) -> None:
        self._thread.shutdown(cancel_futures=True)

    def fill(self) -> None:
        """Waits until as many are there as may be; raises what preparing them raised."""
        for _, future in self._waiting:
            future.result()

    async def take(self) -> Prepared | None:
        """The next one; None after the last."""
        if not self._waiting:
            return None
        size, future = self._waiting.popleft()
        self._bytes -= size
        self._order()
        return await asyncio.wrap_future(future)

    def _order(self) -> None:
        while self._bytes < self._limit and len(self._waiting) < self._most:
            conversation = next(self._conversations, None)
            if conversation is None:
                return
            size = self._preparer.bytes_of(conversation)
            self._bytes += size
            self._waiting.append((size, self._thread.submit(self._preparer.prepare, conversation)))
