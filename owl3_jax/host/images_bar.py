"""What a terminal shows while images are read."""

import contextlib
from collections.abc import Iterator

from tqdm import tqdm

from owl3_jax.inference.engine import Advance

_SECONDS_UNSEEN = 0.5  # a single image needs no bar


@contextlib.contextmanager
def images_bar() -> Iterator[Advance]:
    """A bar for the images of a prompt, on a terminal only. It is gone when the last one is read."""
    with tqdm(desc="reading images", unit="image", leave=False, disable=None, delay=_SECONDS_UNSEEN) as bar:

        def advance(images: int, total: int) -> None:
            bar.total = total
            bar.update(images)
            if bar.n == total:
                bar.close()

        yield advance
