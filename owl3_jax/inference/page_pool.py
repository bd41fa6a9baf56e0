"""Which pages hold what: bookkeeping for a pool that many requests share (`owl3_jax.attention.pages`).

A page is known by its content: an image by its pixels (`feature_cache.key_of`), text by all that precedes it, too. So two
requests that show the same image, at whatever place, or begin with the same text, have one page. A page that nobody shows any
more stays until its room is needed; the one that was given back longest ago goes first.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence, Set
from typing import NamedTuple


class PoolFullError(RuntimeError):
    """A request's pages do not fit beside those of the requests that are under way. Nothing was borrowed."""


class Counts(NamedTuple):
    """Of the pages of a pool."""

    free: int
    idle: int  # hold what no request shows
    used: int
    shared: int  # of those: shown by more than one request
    evicted: int  # so far


class _Page:
    def __init__(self, key: bytes) -> None:
        self.key, self.loans, self.is_written = key, 0, False


class PagePool:
    """The pages of one pool. Not for several threads."""

    def __init__(self, pages: int, on_evict: Callable[[bytes, int], None] | None = None) -> None:
        """`on_evict` gets the key of each page that makes room for others, and its number, while it still holds its content."""
        if pages < 1:
            raise ValueError(f"a pool needs at least one page, got {pages}")
        self._on_evict = on_evict
        self._free = list(range(pages - 1, -1, -1))
        self._pages: dict[int, _Page] = {}
        self._numbers: dict[bytes, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()  # the one that was given back last is last
        self._evicted = 0

    def borrow(self, keys: Sequence[bytes]) -> list[int]:
        """The page of each key of a request, until `give_back`. Those that are not `is_written` have to be filled.

        Raises PoolFullError.
        """
        new, kept = self.check_room(keys)
        self._make_room(len(new), kept)
        for page in kept:
            self._idle.pop(page, None)
        for key in new:
            number = self._free.pop()
            self._pages[number], self._numbers[key] = _Page(key), number
        pages = [self._numbers[key] for key in keys]
        for number in dict.fromkeys(pages):
            self._pages[number].loans += 1
        return pages

    def check_room(self, keys: Sequence[bytes]) -> tuple[list[bytes], set[int]]:
        """What a loan of these keys would consist of: those that have no page yet, and the pages of the others.

        Raises PoolFullError.
        """
        wanted = dict.fromkeys(keys)
        new = [key for key in wanted if key not in self._numbers]
        kept = {self._numbers[key] for key in wanted if key in self._numbers}
        if len(new) > (room := len(self._free) + len(self._idle) - len(kept & self._idle.keys())):
            raise PoolFullError(f"{len(new)} pages are needed, and {room} are to be had")
        return new, kept

    def give_back(self, pages: Sequence[int]) -> None:
        """Ends a loan of `borrow`, in which a page counts once. Pages that were never written are free again.

        Raises ValueError for a page that is not lent.
        """
        if strays := [number for number in pages if number not in self._pages or not self._pages[number].loans]:
            raise ValueError(f"pages that are not lent cannot be given back: {strays}")
        for number in dict.fromkeys(pages):
            page = self._pages[number]
            page.loans -= 1
            if page.loans:
                continue
            if page.is_written:
                self._idle[number] = None
            else:
                self._forget(number)
                self._free.append(number)

    def is_written(self, page: int) -> bool:
        """Whether a borrowed page holds its content."""
        return self._pages[page].is_written

    def mark_written(self, page: int) -> None:
        """From now on a borrowed page holds its content."""
        self._pages[page].is_written = True

    def rename(self, page: int, key: bytes) -> bool:
        """Makes a borrowed page known by another key, unless another page has it; returns whether it is."""
        if key in self._numbers:
            return False
        del self._numbers[self._pages[page].key]
        self._pages[page].key, self._numbers[key] = key, page
        return True

    def counts(self) -> Counts:
        """Of now."""
        shared = sum(page.loans > 1 for page in tuple(self._pages.values()))  # others may ask meanwhile
        return Counts(len(self._free), len(self._idle), len(self._pages) - len(self._idle), shared, self._evicted)

    def _make_room(self, pages: int, kept: Set[int]) -> None:
        """Frees idle pages until there are so many free ones, but for `kept`. An error of `on_evict` leaves all as it was."""
        for number in [number for number in self._idle if number not in kept][: max(0, pages - len(self._free))]:
            if self._on_evict:
                self._on_evict(self._pages[number].key, number)
            self._evicted += 1
            del self._idle[number]
            self._forget(number)
            self._free.append(number)

    def _forget(self, number: int) -> None:
        del self._numbers[self._pages.pop(number).key]
