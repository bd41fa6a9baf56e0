"""Pages of images: shared by content, kept while there is room, never taken from a request."""

import random

import pytest

from owl3_jax.inference.page_pool import Counts, PagePool, PoolFullError


def write(pool: PagePool, pages: list[int]) -> None:
    for page in pages:
        pool.mark_written(page)


def test_the_same_image_is_one_page_for_all_requests():
    pool = PagePool(3)
    first = pool.borrow([b"a", b"b", b"a"])
    assert first[0] == first[2] != first[1]
    assert not pool.is_written(first[0])
    write(pool, first)
    second = pool.borrow([b"b", b"c"])
    assert second[0] == first[1] and pool.is_written(second[0]) and not pool.is_written(second[1])
    assert pool.counts() == Counts(free=0, idle=0, used=3, shared=1, evicted=0)


def test_a_page_stays_until_all_have_given_it_back_and_then_while_there_is_room():
    gone: list[tuple[bytes, int]] = []
    pool = PagePool(2, lambda key, page: gone.append((key, page)))
    a, b = pool.borrow([b"a"]), pool.borrow([b"b"])
    write(pool, a + b)
    pool.give_back(a)
    again = pool.borrow([b"a"])
    assert again == a and pool.is_written(again[0])
    pool.give_back(again)
    pool.give_back(b)
    c = pool.borrow([b"c"])  # takes the one that was given back first
    assert gone == [(b"a", a[0])] and c == a and not pool.is_written(c[0])
    assert pool.borrow([b"b"]) == b
    assert pool.counts() == Counts(free=0, idle=0, used=2, shared=0, evicted=1)


def test_what_does_not_fit_changes_nothing():
    pool = PagePool(3)
    a = pool.borrow([b"a"])
    write(pool, a)
    pool.give_back(a)
    held = pool.borrow([b"b", b"c"])
    write(pool, held)
    before = pool.counts()
    with pytest.raises(PoolFullError, match="2 pages are needed, and 1 are to be had"):
        pool.borrow([b"d", b"e"])
    with pytest.raises(PoolFullError, match="1 pages are needed, and 0 are to be had"):
        pool.borrow([b"a", b"d"])  # the idle page is one of those that it asks for
    assert pool.counts() == before
    assert pool.borrow([b"d"]) == a  # the idle one makes room


def test_a_page_that_was_never_filled_is_not_found_again():
    """Its request was given up before the image was encoded."""
    pool = PagePool(1)
    pool.give_back(pool.borrow([b"a"]))
    assert pool.counts().free == 1
    assert not pool.is_written(pool.borrow([b"a"])[0])


def test_another_request_goes_on_with_a_page_that_is_not_filled_yet():
    pool = PagePool(1)
    first, second = pool.borrow([b"a"]), pool.borrow([b"a"])
    pool.give_back(first)
    assert not pool.is_written(second[0])
    pool.mark_written(second[0])
    pool.give_back(second)
    assert pool.counts() == Counts(free=0, idle=1, used=0, shared=0, evicted=0)


@pytest.mark.parametrize("seed", range(3))
def test_a_thousand_random_requests(seed: int):
    """No page has two images, no request loses a page, and in the end all are free or idle."""
    rng, held = random.Random(seed), list[tuple[list[bytes], list[int]]]()
    pool, written = PagePool(12), dict[int, bytes]()
    for _ in range(1000):
        if held and rng.random() < 0.5:
            _, pages = held.pop(rng.randrange(len(held)))
            pool.give_back(pages)
            continue
        keys = [bytes([rng.randrange(20)]) for _ in range(rng.randint(1, 6))]
        try:
            pages = pool.borrow(keys)
        except PoolFullError:
            assert len({key for others, _ in held for key in others} | set(keys)) > 12
            continue
        for key, page in zip(keys, pages, strict=True):
            if pool.is_written(page):
                assert written[page] == key
            elif rng.random() < 0.9:
                pool.mark_written(page)
                written[page] = key
        held.append((keys, pages))
        owners: dict[int, bytes] = {}
        for others, theirs in held:
            for key, page in zip(others, theirs, strict=True):
                assert owners.setdefault(page, key) == key
        counts = pool.counts()
        assert counts.used == len(owners) and counts.free + counts.idle + counts.used == 12
    for _, pages in held:
        pool.give_back(pages)
    assert pool.counts().used == 0


def test_an_error_while_a_page_is_saved_loses_none():
    def fail(key: bytes, page: int) -> None:
        raise MemoryError(f"no room for {key!r} of page {page}")

    pool = PagePool(2, fail)
    pages = pool.borrow([b"a", b"b"])
    write(pool, pages)
    pool.give_back(pages)
    with pytest.raises(MemoryError, match="b'a'"):
        pool.borrow([b"b", b"c"])
    assert pool.counts() == Counts(free=0, idle=2, used=0, shared=0, evicted=0)
    assert pool.borrow([b"a", b"b"]) == pages


def test_nothing_is_given_back_twice():
    pool = PagePool(2)
    pages = pool.borrow([b"a", b"b"])
    write(pool, pages)
    pool.give_back(pages[:1])
    with pytest.raises(ValueError, match=rf"not lent cannot be given back: \[{pages[0]}\]"):
        pool.give_back(pages)
    assert pool.counts() == Counts(free=0, idle=1, used=1, shared=0, evicted=0)


def test_a_pool_has_pages():
    with pytest.raises(ValueError, match="at least one page"):
        PagePool(0)
