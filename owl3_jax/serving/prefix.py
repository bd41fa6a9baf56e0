"""Names of pages of text by their content, so that requests that begin alike share them.

The keys and values of a token depend on all tokens before it, and on the images that these have seen: so a page is named by the
hash of the page before it, its tokens, and its images with their places. Follow-ups of a conversation find the pages of its
history by that, without any session.
"""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

Places = Mapping[int, Sequence[tuple[int, bytes]]]  # page -> its images: index of the placeholder within it, and key


def image_places(image_starts: Sequence[int], image_keys: Sequence[bytes], tokens_per_page: int) -> Places:
    """The images of each page of a prompt."""
    places: dict[int, list[tuple[int, bytes]]] = {}
    for start, key in zip(image_starts, image_keys, strict=True):
        page, place = divmod(start, tokens_per_page)
        places.setdefault(page, []).append((place, key))
    return places


def further_keys(known: Sequence[bytes], tokens: Sequence[int], images: Places, tokens_per_page: int) -> list[bytes]:
    """The keys of the pages that `tokens` fill, after those that are `known`."""
    keys: list[bytes] = []
    parent = known[-1] if known else b""
    for page in range(len(known), len(tokens) // tokens_per_page):
        own = tokens[page * tokens_per_page : (page + 1) * tokens_per_page]
        parent = _key(parent, own, images.get(page, ()))
        keys.append(parent)
    return keys


def _key(parent: bytes, tokens: Sequence[int], images: Sequence[tuple[int, bytes]]) -> bytes:
    digest = hashlib.blake2b(parent, digest_size=32, person=b"owl3 text page")
    digest.update(np.asarray([len(tokens), *tokens, len(images)], "<i4").tobytes())
    for place, key in images:
        digest.update(np.asarray([place, len(key)], "<i4").tobytes() + key)
    return digest.digest()
