"""Requests' images and videos decoded in worker processes: a file that breaks a decoder costs its request, not the server.

Requests wait in queues that are fair between clients: one for those with media, one for those without, for which there is a
worker more than media may have. Neither kind keeps the other waiting. A worker that dies, or that is killed because its request
took too long, is replaced at once; where that fails it is tried again, after a while that grows.

When the client of a request has gone, its worker may go on for a moment, since starting another would take longer than most
requests do; then it is killed and replaced. Either way the result is dropped.

A worker is limited in memory and time, gets one request at a time and none of the environment's keys, and what it says is
checked. It is not kept from the files and the network that the server's user may reach; run the server in a container for that.
One that a file has taken over can also give false pixels to the requests that it gets next. They harm nobody else: the key by
which an image is kept is computed from its pixels on this side.
"""

import asyncio
import collections
import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from owl3_jax.config import FrameRule
from owl3_jax.serving.decode_limits import DecodeLimits as DecodeLimits
from owl3_jax.serving.decode_limits import DecodeRefused as DecodeRefused
from owl3_jax.serving.decode_limits import RefusalCode
from owl3_jax.serving.decode_request import Request, pack
from owl3_jax.serving.decoder_pool import DecoderPool
from owl3_jax.serving.decoder_process import DecodedPrompt as DecodedPrompt
from owl3_jax.serving.decoder_process import DecoderProcess
from owl3_jax.serving.decoder_process import DecoderStartError as DecoderStartError
from owl3_jax.serving.fair_queue import FairQueue

_GRACE = 1.0  # seconds for a request whose client has gone
_REPLACEMENT = 20.0  # seconds within which another worker should be ready

_STOPPING = "the server is stopping"

_log = logging.getLogger(__name__)


class DecoderCounts(NamedTuple):
    """Of the workers, now or since the start."""

    waiting: int  # requests
    in_use: int  # workers
    started: int
    died: int  # by themselves, or by someone else's hand
    timed_out: int  # killed because a request took too long
    abandoned: int  # killed because a request's client had gone


@dataclasses.dataclass(eq=False)
class _Job:
    request: Request
    answer: asyncio.Future[DecodedPrompt]  # cancelled when nobody waits for it any more
    finish: float = 0.0  # in its queue's time
    was_tried: bool = False

    def refuse(self, code: RefusalCode, message: str) -> None:
        if not self.answer.done():
            self.answer.set_exception(DecodeRefused(code, message))


class _Queue:
    """Requests of one kind. Its time is that of the work which it has given out, whatever that really takes."""

    def __init__(self) -> None:
        self._jobs, self._now = FairQueue[_Job](), 0.0
        self.taken = 0  # requests that are decoded

    def __len__(self) -> int:
        return len(self._jobs)

    def put(self, job: _Job, work: float, others: int) -> None:
        job.finish = self._jobs.put(job, work=work, now=self._now, others=others)

    def pop(self) -> _Job:
        job = self._jobs.pop()
        self._now = max(self._now, job.finish)
        return job

    def remove(self, job: _Job) -> None:
        self._jobs.remove(job)


class Decoders:
    """Some workers, and the requests that wait for one. All methods belong on one event loop.

        async with Decoders(checkpoint, workers=4, limits=DecodeLimits()) as decoders:
            prompt = await decoders.decode(messages)

    Args:
        checkpoint: whose processor the workers load.
        workers: how many requests with media are decoded at once.
        limits: of each of them.
        text_workers: how many more there are for requests without media.
        crop: whether images are seen in crops too; None: as the checkpoint was trained.
        max_frames: most frames of a video file; the checkpoint's own number by default.
        frame_rule: which frames; the checkpoint's own rule by default.
    """

    def __init__(
        self,
        checkpoint: Path,
        workers: int,
        limits: DecodeLimits,
        *,
        text_workers: int = 1,
        crop: bool | None = None,
        max_frames: int | None = None,
        frame_rule: FrameRule | None = None,
    ) -> None:
        if workers < 1:
            raise ValueError(f"decoding needs at least one worker, got {workers}")
        settings: dict[str, object] = {
            "checkpoint": str(checkpoint),
            "crop": crop,
            "max_frames": max_frames,
            "frame_rule": frame_rule,
        }
        self._limits = limits
        self._pool = DecoderPool(workers + text_workers, limits, settings, self._dispatch, self._refuse_during_outage)
        self._most_with_media, self._most_texts = workers, max(1, text_workers)  # of texts, while others wait
        self._texts, self._with_media = _Queue(), _Queue()
        self._clients = collections.Counter[str]()  # requests of each
        self._timed_out = self._abandoned = 0

    async def __aenter__(self) -> "Decoders":
        await self.start()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def start(self) -> None:
        """Returns when all workers are ready. Raises DecoderStartError when one does not start; then none is left."""
        await self._pool.start()

    async def decode(self, messages: Sequence[Mapping[str, object]], client: str = "") -> DecodedPrompt:
        """The tokens and views of a prompt, exactly those of the checkpoint's `Processor`.

        Args:
            messages: as `owl3_jax.serving.decode_request.pack` takes them, with what spells a placeholder in their texts
                escaped (`owl3_jax.processing.chat.escape_placeholders`).
            client: whose they are.

        Raises DecodeRefused.
        """
        if self._pool.is_closing:
            raise DecodeRefused("decoder_unavailable", _STOPPING)
        request = pack(messages, self._limits)
        job = _Job(request, asyncio.get_running_loop().create_future())
        queue = self._with_media if request.media else self._texts
        queue.put(job, work=float(max(1, request.media)), others=self._clients[client])
        self._clients[client] += 1
        self._dispatch()
        try:
            return await job.answer
        finally:
            queue.remove(job)
            self._clients[client] -= 1
            self._clients += collections.Counter()  # forgets who has none left

    def counts(self) -> DecoderCounts:
        """The numbers of /metrics."""
        pool = self._pool
        return DecoderCounts(
            len(self._texts) + len(self._with_media), pool.in_use, pool.started, pool.died, self._timed_out, self._abandoned
        )

    async def close(self) -> None:
        """Ends all workers and refuses all requests; a second time does nothing."""
        self._refuse_waiting(_STOPPING)
        await self._pool.close()

    def _dispatch(self) -> None:
        """Gives requests to workers, while there are both."""
        while self._pool.has_idle and (queue := self._next()) is not None:
            job = queue.pop()
            if not job.answer.done() and (process := self._pool.take()):  # else its client has gone
                queue.taken += 1
                self._pool.spawn(self._serve(process, job, queue))

    def _next(self) -> _Queue | None:
        texts, media = self._texts, self._with_media
        may_be_media = len(media) > 0 and media.taken < self._most_with_media
        if len(texts) and (texts.taken < self._most_texts or not may_be_media):
            return texts
        return media if may_be_media else None

    def _refuse_waiting(self, message: str) -> None:
        for queue in (self._texts, self._with_media):
            while len(queue):
                queue.pop().refuse("decoder_unavailable", message)

    def _refuse_during_outage(self) -> None:
        self._refuse_waiting("images and videos cannot be read at the moment; try again later")

    async def _serve(self, process: DecoderProcess, job: _Job, queue: _Queue) -> None:
        """Answers one request. Then the worker is idle again, or another takes its place."""
        reading = self._pool.in_thread(process.decode, job.request)
        await asyncio.wait({reading, job.answer}, timeout=self._limits.timeout, return_when=asyncio.FIRST_COMPLETED)
        if job.answer.cancelled():
            await asyncio.wait({reading}, timeout=_GRACE)
        if not reading.done():
            self._give_up(process, job)
            await asyncio.wait({reading})
        is_fit = self._deliver(reading, job) and process.is_alive
        if is_fit and not process.is_worn:
            queue.taken -= 1
            self._pool.give_back(process)
            return
        replacing = self._pool.spawn(self._pool.replace(process, has_died=not is_fit and not process.was_killed))
        await asyncio.wait({replacing}, timeout=_REPLACEMENT)
        queue.taken -= 1  # if there is no other by then, the ones that are left do its work
        self._dispatch()

    def _give_up(self, process: DecoderProcess, job: _Job) -> None:
        process.kill()
        if job.answer.cancelled():
            self._abandoned += 1
        else:
            self._timed_out += 1
            _log.warning("decoder %d is killed: its request takes more than %g s", process.pid, self._limits.timeout)
            job.refuse(
                "decode_timeout", f"images and videos of a request may take {self._limits.timeout:g} s; these take longer"
            )

    def _deliver(self, reading: asyncio.Future[DecodedPrompt], job: _Job) -> bool:
        """Hands on what a worker has answered; returns whether it is fit for more."""
        error = reading.exception()
        if error is None:
            if not job.answer.done():
                job.answer.set_result(reading.result())
        elif isinstance(error, DecodeRefused):
            job.refuse(error.code, str(error))
        elif self._pool.is_closing:
            job.refuse("decoder_unavailable", _STOPPING)
        else:
            if not job.answer.done():  # otherwise it was killed
                _log.warning("a decoder fails: %r", error)
            if job.request.media:
                job.refuse("decoder_died", "decoding ended before it was done; a file of the request may be damaged")
            elif job.was_tried:
                job.refuse("decoder_unavailable", "the prompt could not be read; try again")
            elif not job.answer.done():  # there was nothing in it to die of
                job.was_tried = True
                self._texts.put(job, work=0.0, others=0)
        return error is None or isinstance(error, DecodeRefused)
