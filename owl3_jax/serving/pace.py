"""How the engine's time is divided between reading prompts and decoding answers, and what reading takes."""

from collections.abc import Iterable

from owl3_jax.serving.request import Request

_SECONDS_PER_IMAGE, _SECONDS_PER_TOKEN, _SECONDS_PER_STEP = 0.1, 0.0005, 0.02  # before anything has been measured
_SMOOTHING = 0.2  # weight of the newest measurement
_LONGEST_DEBT = 10.0  # seconds that one of the two can be behind


class Pace:
    """Clocks of both kinds of work. Used by the engine's thread; `work` by others too."""

    def __init__(self, reading_share: float) -> None:
        """`reading_share`: of the time, while there is something to decode."""
        self._share = reading_share
        self._debt = 0.0  # seconds of decoding that are owed for what has been read
        self._image, self._token, self._step = _SECONDS_PER_IMAGE, _SECONDS_PER_TOKEN, _SECONDS_PER_STEP

    def may_read(self) -> bool:
        """Whether reading is next, where both could be."""
        return self._debt <= 0

    def has_read(self, seconds: float, *, images: int, tokens: int, is_delaying: bool) -> None:
        """Counts a unit of reading: so many images, or tokens. `is_delaying`: whether answers waited for it meanwhile."""
        owed = seconds * (1 - self._share) / self._share if is_delaying else 0.0
        self._debt = min(max(self._debt, 0.0) + owed, _LONGEST_DEBT)
        if images:
            self._image += _SMOOTHING * (seconds / images - self._image)
        if tokens:
            self._token += _SMOOTHING * (seconds / tokens - self._token)

    def has_decoded(self, seconds: float) -> None:
        """Counts a step of decoding."""
        self._debt -= seconds
        self._step += _SMOOTHING * (seconds - self._step)

    def work(self, request: Request) -> float:
        """Seconds that reading a request takes if nothing of it is there."""
        return len(set(request.image_keys)) * self._image + len(request.prompt) * self._token

    def seconds_until_place(self, requests: Iterable[Request]) -> float:
        """Seconds until one of these, which are under way, is likely to be complete, at least one."""
        return max(1.0, min(map(self._rest, requests), default=1.0))

    def _rest(self, request: Request) -> float:
        reading = 0.0 if request.is_read else self.work(request)
        return reading + (request.limit - len(request.ids)) * self._step
