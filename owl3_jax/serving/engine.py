"""The engine of a server: one thread that takes requests from a queue and answers them together."""

import dataclasses
import threading
import time
from collections.abc import Callable

from owl3_jax.inference.feature_cache import FeatureCache
from owl3_jax.inference.memory import OutOfMemory, explain_out_of_memory
from owl3_jax.inference.runtime import Runtime
from owl3_jax.pretrained import Owl3Checkpoint
from owl3_jax.processing.tokenizer import ChatTokenizer
from owl3_jax.serving.batch import Batch
from owl3_jax.serving.fair_queue import FairQueue
from owl3_jax.serving.generation import (
    EngineClosedError,
    Generation,
    Listener,
    Load,
    QueueFullError,
    ServingEngine,
    TooLargeError,
)
from owl3_jax.serving.logs import LOGGER, log
from owl3_jax.serving.request import HeldPixels, Request, check_generation
from owl3_jax.serving.settings import EngineSettings


class Engine:
    """A `ServingEngine` over one set of parameters."""

    def __init__(self, runtime: Runtime, tokenizer: ChatTokenizer, settings: EngineSettings) -> None:
        """Allocates the pools and starts the thread, which compiles its programs first. Raises OutOfMemory."""
        self._settings, self._tokenizer = settings, tokenizer
        self._max_tokens = settings.most_tokens(runtime.config.max_position_embeddings)
        self._batch = Batch(runtime, tuple(tokenizer.stop_ids), settings, self._max_tokens)
        self._waiting: FairQueue[Request] = FairQueue()
        self._known: dict[str, Request] = {}
        self._held = HeldPixels()
        self._cancelled: set[Request] = set()
        self._changed = threading.Condition()  # guards all of the above
        self._is_ready = self._is_closing = self._is_aborting = self._was_closed = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def is_ready(self) -> bool:
        """Whether all programs are compiled, and new requests are taken."""
        return self._is_ready and not self._is_closing

    @property
    def has_failed(self) -> bool:
        """Whether it has ended by itself; see `ServingEngine.has_failed`."""
        return not self._was_closed and not self._thread.is_alive()

    def submit(self, generation: Generation, listener: Listener) -> None:
        """Queues an answer; see `ServingEngine.submit`."""
        check_generation(generation, self._batch.image_size)
        limit, pace, now = self._limit(generation), self._batch.pace, time.monotonic()
        with self._changed:
            if self._is_closing:
                raise EngineClosedError
            if generation.request_id in self._known:
                raise ValueError(f"there is a request {generation.request_id!r} already")
            places = self._batch.free_places
            is_next = not self._waiting and places > 0
            is_full = len(self._waiting) >= self._settings.max_queued + places  # those who will have these do not wait
            if is_full or not (is_next or self._has_room(generation)):
                raise QueueFullError(pace.seconds_until_place(self._batch.reading + self._batch.running))
            request = Request.of(generation, listener, self._tokenizer, limit, self._held)
            client, work, priority = generation.client, pace.work(request), generation.priority
            others = sum(each.generation.client == client and not each.is_read for each in self._known.values())
            request.finish = self._waiting.put(request, work=work, now=now, others=others, priority=priority)
            self._known[generation.request_id] = request
            self._changed.notify()

    def cancel(self, request_id: str) -> None:
        """Ends an answer; see `ServingEngine.cancel`."""
        with self._changed:
            if request := self._known.get(request_id):
                request.is_cancelled = True
                self._cancelled.add(request)
                self._changed.notify()

    def load(self) -> Load:
        """The numbers of /metrics."""
        with self._changed:
            images, text = self._batch.pools.of_images.counts(), self._batch.pools.of_text.counts()
            return Load(
                waiting=len(self._waiting),
                running=len(self._batch.running) + len(self._batch.reading),
                pages_free=images.free,
                pages_idle=images.idle,
                pages_used=images.used,
                pages_shared=images.shared,
                pages_evicted=images.evicted,
                text_pages_free=text.free,
                text_pages_idle=text.idle,
                text_pages_used=text.used,
                images_encoded=self._batch.images_encoded,
                tokens_generated=self._batch.tokens_generated,
            )

    def close(self, timeout: float) -> None:
        """Finishes what is under way; see `ServingEngine.close`."""
        with self._changed:
            self._is_closing = self._was_closed = True
            self._changed.notify()
        self._thread.join(timeout)
        self._is_aborting = True
        self._thread.join()

    def _has_room(self, generation: Generation) -> bool:
        """For the pixels of one more request that waits."""
        new = {view.key: view.pixels.nbytes for view in generation.views if view.key not in self._held}
        held = (pixels.nbytes for pixels in self._held.values())
        return not new or sum(held) + sum(new.values()) <= self._settings.queue_gib * 2**30

    def _limit(self, generation: Generation) -> int:
        """Tokens of the answer. Raises TooLargeError."""
        tokens, images, most = len(generation.input_ids), len(generation.image_starts), self._settings.max_images
        if tokens == 0:
            raise TooLargeError("the prompt has no tokens")
        if images > most:
            raise TooLargeError(f"the prompt has {images} images (crops and frames count), the server takes {most}")
        if tokens >= self._max_tokens:
            raise TooLargeError(f"the prompt has {tokens} tokens, the server takes {self._max_tokens - 1} before an answer")
        limit, pools = min(generation.sampling.max_new_tokens, self._max_tokens - tokens), self._batch.pools
        if (images := len({view.key for view in generation.views})) > pools.sizes.image_pages:
            raise TooLargeError(f"the prompt has {images} images, the server has memory for {pools.sizes.image_pages}")
        if pools.text_pages(tokens + limit) > pools.sizes.text_pages:
            room = pools.sizes.text_pages * pools.sizes.tokens_per_page
            raise TooLargeError(
                f"the prompt has {tokens} tokens and the answer up to {limit}; the server has memory for {room} together"
            )
        return limit

    def _run(self) -> None:
        """The thread. Whatever ends it, nobody is left waiting."""
        try:
            if self._guarded(self._warm_up):
                self._serve()
        except Exception:  # after a failure there were no new pools to be had
            LOGGER.exception("the engine failed")
        finally:
            with self._changed:
                self._is_closing = True
                lost = list(self._known.values())
                for request in lost:
                    request.fail(503, "shutting_down", "the server is shutting down")
                for request in lost:
                    self._end(request)

    def _serve(self) -> None:
        """Answers requests, until the end."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._known or self._is_closing)
                for request in self._cancelled & set(self._known.values()):
                    self._end(request)
                self._cancelled.clear()
                if self._is_closing and (self._is_aborting or not self._known):
                    return
            self._guarded(self._turn)

    def _warm_up(self) -> None:
        began = time.monotonic()
        for what in self._batch.warm_up() if self._settings.warm_up else ():
            log("compiling", what=what)
            if self._is_closing:
                return
        log("ready", seconds=round(time.monotonic() - began, 1))
        self._is_ready = True

    def _admit(self) -> None:
        """Gives places and pages to the next ones of the queue. One that does not fit is waited for: none overtakes it."""
        while True:
            with self._changed:
                if not self._waiting:
                    return
                request = self._waiting.pop()
            put_off = self._batch.admit(request)  # without the lock: images may have to be moved to the host's memory
            with self._changed:
                for each in [request] if put_off is None else put_off:
                    priority, finish = each.rank
                    self._waiting.put_back(each, priority=priority, finish=finish)
            if put_off is None:
                return

    def _turn(self) -> None:
        self._admit()
        for request in self._batch.turn():
            with self._changed:
                self._end(request)
            request.end()

    def _end(self, request: Request) -> None:
        """Forgets a request, wherever it is."""
        self._known.pop(request.generation.request_id, None)
        request.pixels.clear()  # whoever still knows the request, the queue's bound does not count them any more
        if not self._batch.remove(request):
            self._waiting.remove(request)

    def _guarded(self, act: Callable[[], None]) -> bool:
        """Runs it. After a failure the requests under way end with an error, and the engine goes on with new pools."""
        try:
            with explain_out_of_memory():
                act()
        except Exception as error:
            LOGGER.exception("a step failed")
            self._fail(error)
            return self._is_ready
        return True

    def _fail(self, error: Exception) -> None:
        is_memory = isinstance(error, OutOfMemory)
        said = (503, "out_of_memory", "the server ran out of memory")
        with self._changed:
            for request in self._batch.reset():
                self._end(request)
                request.fail(*(said if is_memory else (500, "internal_error", "the server failed; try again")))


def start_engine(owl: Owl3Checkpoint, settings: EngineSettings) -> ServingEngine:
    """The engine of a checkpoint, which is getting ready. It keeps images as pages, so it needs no features of them.

    A CPU encodes one image at a time: more at once take it as long, and others wait longer for their turn.
    """
    runtime = dataclasses.replace(owl.runtime, feature_cache=FeatureCache(0))
    if runtime.platform == "cpu":
        runtime = dataclasses.replace(runtime, vision_batch_size=runtime.devices)
    return Engine(runtime, owl.processor.tokenizer, settings)
