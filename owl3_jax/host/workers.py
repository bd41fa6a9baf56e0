"""One function on many items, in several processes."""

import concurrent.futures
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class WorkerDiedError(RuntimeError):
    """A process was killed: a library crashed, or there was not enough memory."""


def map_in_processes(function: Callable[[Item], Result], items: Sequence[Item], workers: int) -> Iterator[tuple[Item, Result]]:
    """The items with their results, as they are done; with one worker in this process, one after the other.

    `function` is sent to each process once. What it raises is raised here.

    Raises WorkerDiedError.
    """
    if workers == 1 or len(items) <= 1:
        for item in items:
            yield item, function(item)
        return
    # Not forked: this process has threads, of jax for one.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(min(workers, len(items)), context, _start, (function,)) as pool:
        futures = {pool.submit(_call, item): item for item in items}
        try:
            for future in concurrent.futures.as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool as error:
            raise WorkerDiedError("a process died: a decoder crashed, or there was not enough memory") from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


_of_this_process: list[Callable[..., Any]] = []  # Any: each pool has its own function; in a worker


def _start(function: Callable[..., Any]) -> None:  # Any: as above
    _of_this_process[:] = [function]


def _call(item: Any) -> Any:  # Any: as above
    return _of_this_process[0](item)
