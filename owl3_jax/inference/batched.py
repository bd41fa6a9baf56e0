"""Items in groups, as `itertools.batched` of Python 3.12 makes them."""

import itertools
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of `size` successive items, the last one perhaps shorter. Reads no item before the list that holds it is due."""
    iterator = iter(items)
    while group := list(itertools.islice(iterator, size)):
        yield group
