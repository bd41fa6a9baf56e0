"""Items of an iterator made ahead by a thread, while the caller works on earlier ones."""

import queue
import threading
from collections.abc import Generator, Iterable
from typing import NamedTuple, TypeVar

Item = TypeVar("Item")


class _End(NamedTuple):
    """What follows the last item."""

    error: BaseException | None


def ahead(items: Iterable[Item], count: int) -> Generator[Item, None, None]:
    """The items in their order, of which up to `count` are made before they are asked for.

    An error of the iterator is raised where its item would be. Closing the generator ends the thread after the item that it
    is making.
    """
    made: queue.Queue[Item | _End] = queue.Queue(count)
    stopped = threading.Event()

    def put(item: Item | _End) -> bool:
        while not stopped.is_set():
            try:
                made.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def make() -> None:
        error: BaseException | None = None
        try:
            for item in items:
                if not put(item):
                    return
        except BaseException as raised:  # raised again by the caller's thread
            error = raised
        put(_End(error))

    thread = threading.Thread(target=make, daemon=True)
    thread.start()
    try:
        while True:
            item = made.get()
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            yield item
    finally:
        stopped.set()
        thread.join()
