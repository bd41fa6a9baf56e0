"""The requests that have pages: whose prompts are being read, and whose answers are being decoded.

Answers are decoded together, a token of each in a step; requests join and leave between two steps. A prompt is read between
steps too, in units of a few images or one chunk of text, so that a long one never stops the others' tokens for longer than a
unit takes; while answers are under way, units take at most `EngineSettings.reading_share` of the time.
"""

import time
from collections.abc import Iterator

import jax
from jaxtyping import Array, Float

from owl3_jax.inference import buckets
from owl3_jax.inference.page_pool import PoolFullError
from owl3_jax.inference.runtime import Runtime
from owl3_jax.serving.pace import Pace
from owl3_jax.serving.pools import Pools
from owl3_jax.serving.request import Request
from owl3_jax.serving.settings import EngineSettings
from owl3_jax.serving.sizes import pool_sizes
from owl3_jax.serving.steps import Steps


class Batch:
    """Requests under way, on the devices. Not for several threads."""

    def __init__(self, runtime: Runtime, stop_ids: tuple[int, ...], settings: EngineSettings, max_tokens: int) -> None:
        """Allocates the pools, for requests of at most `max_tokens`. Raises OutOfMemory."""
        self.pools = Pools(runtime, pool_sizes(runtime, settings, max_tokens))
        self.pace = Pace(settings.reading_share)
        self.reading: list[Request] = []
        self.running: list[Request] = []
        self.images_encoded = self.tokens_generated = 0
        self.image_size = runtime.config.vision.image_size
        self._unfit: Request | None = None  # waits for pages that others have
        self._most, self._stop_ids = settings.max_running, stop_ids
        widths = {"text_width": self.pools.text_pages(max_tokens), "image_width": settings.max_images}
        self._steps = Steps(runtime, self.pools, stop_ids, **widths)

    @property
    def free_places(self) -> int:
        """For so many more requests."""
        return max(0, self._most - len(self.reading) - len(self.running))

    def warm_up(self) -> Iterator[str]:
        """As `Steps.warm_up`."""
        return self._steps.warm_up(self._most)

    def admit(self, request: Request) -> list[Request] | None:
        """Gives a request a place and pages: if need be, those of requests that are being read and come after it.

        Returns the ones that have to wait again, whose written pages stay as long as there is room; None if there is not
        enough even so.
        """
        if request is self._unfit:
            return None
        put_off = list[Request]()
        try:
            while not self._enter(request):
                last = max(self.reading, key=lambda each: each.rank, default=request)
                if last.rank <= request.rank:
                    while put_off:
                        if not self._enter(put_off[-1]):
                            raise RuntimeError("pages that were given back are not to be had")
                        put_off.pop()
                    self._unfit = request
                    return None
                self.remove(last)
                put_off.append(last)
        except Exception:
            # `reset` gives up those that are here.
            self.reading += [each for each in (request, *put_off) if each not in self.reading]
            raise
        return put_off

    def _enter(self, request: Request) -> bool:
        """Gives a request a place and pages; returns whether there are enough."""
        if not self.free_places:
            return False
        starts, keys = request.generation.image_starts, request.image_keys
        self.reading.append(request)  # first: should anything fail, this is one of those that it failed for
        try:
            # The last token of an answer is not read.
            loan = self.pools.borrow(request.prompt, starts, keys, room=request.limit - 1)
        except PoolFullError:
            self.reading.remove(request)
            return False
        request.enter(loan, sum(map(self.pools.of_images.is_written, loan.images)))
        return True

    def remove(self, request: Request) -> bool:
        """Takes a request out, and its pages back; returns whether it was here."""
        if loan := request.leave():
            self.pools.give_back(loan)
            self._unfit = None
        for requests in (self.reading, self.running):
            if request in requests:
                requests.remove(request)
                return True
        return False

    def reset(self) -> list[Request]:
        """Takes all requests out, whatever state the devices are in, and makes the pools anew."""
        lost = self.reading + self.running
        self.reading, self.running, self._unfit = [], [], None
        for request in lost:
            request.leave()
        self.pools.reset()
        return lost

    def turn(self) -> list[Request]:
        """A step of the answers, or a unit of a prompt; returns the requests that are complete."""
        began, is_delaying = time.monotonic(), bool(self.running)
        if is_delaying and (not self.reading or not self.pace.may_read()):
            complete = self._decode()
            self.pace.has_decoded(time.monotonic() - began)
            return complete
        if not self.reading:
            return []
        request = min(self.reading, key=lambda request: request.rank)
        images, tokens, complete = 0, 0, list[Request]()
        if missing := self._next_images(request):
            images = self._fill(missing)
        else:
            tokens, complete = self._read(request)
        self.pace.has_read(time.monotonic() - began, images=images, tokens=tokens, is_delaying=is_delaying)
        return complete

    def _next_images(self, request: Request) -> list[tuple[Request, bytes, int]]:
        """As many images as are encoded at once whose pages are not written: of a request; if there is room, of others too."""
        if not self._missing(request):
            return []
        others = [] if self.running else [other for other in self.reading if other is not request]
        found: dict[int, tuple[Request, bytes, int]] = {}
        for each in [request, *others]:
            found |= {page: (each, key, page) for page, key in self._missing(each).items() if page not in found}
            if len(found) >= self._steps.images_at_once:
                break
        return list(found.values())[: self._steps.images_at_once]

    def _missing(self, request: Request) -> dict[int, bytes]:
        """Pages of its images that are not written yet, with their keys."""
        pages = zip(request.loan.images, request.image_keys, strict=True) if request.loan else ()
        return {page: key for page, key in pages if not self.pools.of_images.is_written(page)}

    def _fill(self, images: list[tuple[Request, bytes, int]]) -> int:
        """Writes the pages of images: from the host's memory, or by the vision tower; returns how many took that."""
        new = [(request.pixels[key], page) for request, key, page in images if not self.pools.restore(key, page)]
        if new:
            self._steps.encode(new)
        jax.block_until_ready(self.pools.images)
        for _, page in new:
            self.pools.of_images.mark_written(page)
        self.images_encoded += len(new)
        return len(new)

    def _read(self, request: Request) -> tuple[int, list[Request]]:
        """The next chunk of a prompt: how many tokens, and whether that completes the request."""
        loan, prompt = request.loan, request.prompt
        assert loan is not None
        if request.read % self.pools.sizes.tokens_per_page == 0:
            # The last token is always read: for the logits after it.
            request.skip(min(self.pools.cached_tokens(loan, request.read), len(prompt) - 1 - request.read))
        chunk = prompt[request.read : request.read + buckets.PREFILL_CHUNK]
        logits = jax.block_until_ready(self._steps.read([request], [chunk]))
        request.read += len(chunk)
        self.pools.mark_text_written(loan, prompt[: request.read])
        if not request.is_read:
            return len(chunk), []
        request.begin()
        self.reading.remove(request)
        self.running.append(request)
        return len(chunk), self._push([request], logits)

    def _decode(self) -> list[Request]:
        """The newest token of each answer is read, and the next one chosen; returns the answers that are complete."""
        running = list(self.running)
        logits = self._steps.read(running, [[request.ids[-1]] for request in running])
        for request in running:
            request.read += 1
            if request.read % self.pools.sizes.tokens_per_page == 0 and request.loan:
                self.pools.mark_text_written(request.loan, (request.prompt + request.ids)[: request.read])
        return self._push(running, logits)

    def _push(self, requests: list[Request], logits: Float[Array, "B V"]) -> list[Request]:
        tokens = self._steps.choose(requests, logits)
        self.tokens_generated += len(tokens)
        pairs = zip(requests, tokens, strict=True)
        return [request for request, token in pairs if request.push(token, self._stop_ids)]
