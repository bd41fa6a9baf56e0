"""The figures of one request, and of one run of many."""

import dataclasses
import itertools
from collections.abc import Iterator

from owl3_jax.serving.bench.client import Reply
from owl3_jax.serving.bench.workload import Conversation


@dataclasses.dataclass(frozen=True)
class Record:
    """One request. Times are in seconds since the measurement began."""

    conversation: int
    turn: int  # 0 for the first question of a conversation
    images: int  # in the prompt, the history included
    is_shared: bool  # others show the same images
    scheduled: float  # when it should have been sent; latencies count from here
    sent: float
    ended: float
    pieces: tuple[float, ...]  # when each piece of text arrived
    status: int | None  # of HTTP
    error: str | None  # its kind: http_429, timeout, connection, disconnected, cut_off, protocol, server_error
    message: str
    finish_reason: str | None
    prompt_tokens: int | None
    cached_tokens: int | None
    output_tokens: int | None  # as the server counts; the pieces where it does not

    @property
    def time_to_first(self) -> float | None:
        """Seconds from the schedule to the first piece of text; None if there was none."""
        return self.pieces[0] - self.scheduled if self.pieces else None

    @property
    def gaps(self) -> list[float]:
        """Seconds between pieces of text."""
        return [later - earlier for earlier, later in itertools.pairwise(self.pieces)]

    @property
    def time_per_token(self) -> float | None:
        """Seconds for each token after the first; None where there are fewer than two."""
        if not self.output_tokens or self.output_tokens < 2 or not self.pieces:
            return None
        return (self.pieces[-1] - self.pieces[0]) / (self.output_tokens - 1)

    @property
    def end_to_end(self) -> float:
        """Seconds from the schedule to the end."""
        return self.ended - self.scheduled

    @property
    def new_images(self) -> int:
        """Images that the prompt shows and no earlier turn showed."""
        return self.images if self.turn == 0 else 0


@dataclasses.dataclass
class Run:
    """What one load led to. Times are in seconds since the measurement began."""

    name: str
    began: float
    ended: float = 0.0
    records: list[Record] = dataclasses.field(default_factory=list)
    under_way: int = 0  # requests that were sent and have no record

    @property
    def seconds(self) -> float:
        """From its begin to its end."""
        return max(self.ended - self.began, 0.0)

    @property
    def failures(self) -> Iterator[Record]:
        """The requests that failed."""
        return (record for record in self.records if record.error)


def make_record(reply: Reply, zero: float, scheduled: float, conversation: Conversation, turn: int) -> Record:
    """The record of a reply to a turn of a conversation.

    Args:
        reply: its times are of `time.perf_counter`, as `zero` and `scheduled` are.
        zero: when the measurement began.
        scheduled: when the request should have been sent.
        conversation: whose request it was.
        turn: of the conversation, counted from 0.
    """
    answer = reply.answer
    return Record(
        conversation=conversation.number,
        turn=turn,
        images=len(conversation.pictures),
        is_shared=conversation.is_shared,
        scheduled=scheduled - zero,
        sent=reply.sent - zero,
        ended=reply.ended - zero,
        pieces=tuple(time - zero for time in answer.times),
        status=reply.status,
        error=reply.error,
        message=reply.message,
        finish_reason=answer.finish_reason,
        prompt_tokens=answer.prompt_tokens,
        cached_tokens=answer.cached_tokens,
        output_tokens=len(answer.times) if answer.output_tokens is None else answer.output_tokens,
    )
