"""SIGTERM and SIGINT as a request to stop, for a loop that ends its step and saves first."""

import os
import signal
from types import FrameType

import jax
from jax.experimental import multihost_utils

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StoppedError(Exception):
    """Work was interrupted because its process has to stop."""


class StopSignal:
    """A context manager; `received` names the first signal that came inside it, or is None.

    The first signal only sets that. A second one ends the process at once: checkpoints are complete or absent, so that
    only the steps since the last one are lost.

    In a run of several processes JAX's preemption service takes SIGTERM: it tells all processes of a signal that any of them
    got, and finds a question that none has asked yet. SIGINT is passed on as SIGTERM.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._is_alone = jax.process_count() == 1
        self._questions, self._must_stop = 0, False

    def __enter__(self) -> "StopSignal":
        if self._is_alone:
            self._handlers = {number: signal.signal(number, self._receive) for number in _SIGNALS}
        else:
            self._handlers = {signal.SIGINT: signal.signal(signal.SIGINT, self._pass_on)}
        return self

    def must_stop(self) -> bool:
        """Whether to end now. All processes ask equally often, and get the same answer to the same question."""
        if self._is_alone:
            return self.received is not None
        self._questions += 1
        self._must_stop |= bool(multihost_utils.reached_preemption_sync_point(self._questions))
        return self._must_stop

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        signal.signal(number, signal.SIG_DFL)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_DFL)
