"""One function on many items, in several processes."""

import concurrent.futures
import multiprocessing
import os
import pickle
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
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
    with (
        tempfile.TemporaryDirectory() as folder,
        concurrent.futures.ProcessPoolExecutor(min(workers, len(items)), context, _start, (_save(function, folder),)) as pool,
    ):
        futures = {pool.submit(_call, item): item for item in items}
        try:
            for future in concurrent.futures.as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool as error:
            raise WorkerDiedError("a process died: a decoder crashed, or there was not enough memory") from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


_of_this_process: list[Callable[..., Any]] = []  # Any: each pool has its own function; in a worker


def _save(function: Callable[..., Any], folder: str) -> Path:  # Any: as above
    """A file for `_start`: a large function that is given to a process directly delays the start of the next process."""
    path = Path(folder) / "function"
    path.write_bytes(pickle.dumps(function))
    return path


def _start(path: Path) -> None:
    end_with_parent()
    _of_this_process[:] = [pickle.loads(path.read_bytes())]  # written by the process that started this one, in its own folder


def end_with_parent() -> None:
    """From now on this process ends when the one that started it is killed: it would wait for work for ever."""
    threading.Thread(target=_await_parent, daemon=True).start()


def kill_children() -> None:
    """Kills the processes that `multiprocessing` has started for this one, those that hang too."""
    for child in multiprocessing.active_children():
        child.kill()


def _await_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _call(item: Any) -> Any:  # Any: as above
    return _of_this_process[0](item)
