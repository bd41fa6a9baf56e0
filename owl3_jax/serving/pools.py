"""The pools of pages on the devices, and what each request has borrowed of them."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from owl3_jax.attention.pages import Pages
from owl3_jax.host.array_cache import ArrayCache
from owl3_jax.inference import paged_programs
from owl3_jax.inference.page_pool import PagePool
from owl3_jax.inference.runtime import Runtime
from owl3_jax.serving.prefix import Places, further_keys, image_places


class PoolSizes(NamedTuple):
    """Of both pools."""

    text_pages: int
    tokens_per_page: int
    image_pages: int
    host_bytes: int = 0  # of images that are kept in the host's memory when their page is needed; 0: they are forgotten


@dataclasses.dataclass
class Loan:
    """The pages of one request."""

    text: list[int]  # in order; the last ones are for the answer
    images: list[int]  # one for each image of the prompt
    keys: list[bytes]  # of the text pages that are named by their content, the first ones
    places: Places  # of the images in the text pages


class _Spilled(NamedTuple):
    page: Pages  # numpy arrays
    nbytes: int


class Pools:
    """Both pools. Not for several threads."""

    def __init__(self, runtime: Runtime, sizes: PoolSizes) -> None:
        """Allocates them. Raises OutOfMemory."""
        self.sizes, self._runtime = sizes, runtime
        self._spilled: ArrayCache[bytes] = ArrayCache(sizes.host_bytes)
        self._numbers = itertools.count()
        self._allocate()

    def reset(self) -> None:
        """Empties both, with no request left: after a failure that may have taken a pool with it. Raises OutOfMemory."""
        for array in jax.tree.leaves((self.text, self.images)):
            array.delete()  # there may be no room for the old and the new ones
        self._allocate()

    def _allocate(self) -> None:
        config, sizes = self._runtime.config, self.sizes
        compute = paged_programs.pool_compute(self._runtime.compute, self._runtime.platform)
        self.text = self._runtime.run(paged_programs.empty_text_pages, config, compute, sizes.text_pages, sizes.tokens_per_page)
        self.images = self._runtime.run(paged_programs.empty_image_pages, config, compute, sizes.image_pages)
        self.of_text = PagePool(sizes.text_pages)
        self.of_images = PagePool(sizes.image_pages, self._spill if sizes.host_bytes else None)

    def warm_up(self) -> None:
        """Compiles what moves images to the host's memory and back, if that is wanted."""
        if self.sizes.host_bytes:
            self.images = self._runtime.run(paged_programs.put_page, self.images, self._taken(0), np.int32(0))

    def text_pages(self, tokens: int) -> int:
        """Pages that hold so many tokens."""
        return -(-tokens // self.sizes.tokens_per_page)

    def borrow(self, tokens: Sequence[int], image_starts: Sequence[int], image_keys: Sequence[bytes], room: int) -> Loan:
        """The pages of a prompt, and of `room` tokens after it. Raises PoolFullError."""
        places = image_places(image_starts, image_keys, self.sizes.tokens_per_page)
        keys = further_keys([], tokens, places, self.sizes.tokens_per_page)
        own = self.text_pages(len(tokens) + room) - len(keys)
        names = [*keys, *(b"own %d" % next(self._numbers) for _ in range(own))]
        self.of_text.check_room(names)  # before any image has to make room
        images = self.of_images.borrow(image_keys)
        return Loan(self.of_text.borrow(names), images, keys, places)

    def give_back(self, loan: Loan) -> None:
        """Ends a loan. What is written stays for others, while there is room."""
        self.of_text.give_back(loan.text)
        self.of_images.give_back(loan.images)

    def cached_tokens(self, loan: Loan, after: int) -> int:
        """From position `after`, at the beginning of a page, to the end of the pages that are written: how many tokens."""
        page = after // self.sizes.tokens_per_page
        written = itertools.takewhile(self.of_text.is_written, loan.text[page : len(loan.keys)])
        return sum(1 for _ in written) * self.sizes.tokens_per_page

    def mark_text_written(self, loan: Loan, tokens: Sequence[int]) -> None:
        """The loan's pages hold `tokens`, a prompt and perhaps the beginning of its answer: full ones can be shared."""
        for key in further_keys(loan.keys, tokens, loan.places, self.sizes.tokens_per_page):
            page = loan.text[len(loan.keys)]
            if not self.of_text.rename(page, key):
                break  # somebody else has written the same: this copy is free when the request ends
            loan.keys.append(key)
        for page in loan.text[: min(len(loan.keys), len(tokens) // self.sizes.tokens_per_page)]:
            self.of_text.mark_written(page)

    def restore(self, key: bytes, page: int) -> bool:
        """Fills a page from the host's memory, if its image is there; returns whether it was."""
        if (spilled := self._spilled.get(key)) is None:
            return False
        self.images = self._runtime.run(paged_programs.put_page, self.images, spilled.page, np.int32(page))
        self.of_images.mark_written(page)
        return True

    def _spill(self, key: bytes, page: int) -> None:
        if self._spilled.get(key) is not None:
            return  # since the last time
        taken = self._taken(page)
        self._spilled.put(key, _Spilled(taken, sum(array.nbytes for array in jax.tree.leaves(taken))))

    def _taken(self, page: int) -> Pages:
        """One page, as numpy arrays."""
        taken: Pages = jax.device_get(self._runtime.run(paged_programs.take_page, self.images, np.int32(page)))
        return taken
