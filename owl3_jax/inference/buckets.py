"""Sizes that arrays are padded up to, so that prompts of any size share a few compiled programs.

Sizes up to a power of two are that power; between two powers there are `steps` sizes, evenly spaced. Padding is masked, and
chunks of images that no position sees are skipped, so a larger bucket costs only memory: at most 1 / `steps` more.
"""

PREFILL_CHUNK = 256  # text positions that are prefilled at a time
TPU_TEXT_PAGE = 128  # tokens of a page of text: the lanes of a TPU's registers
_SHORTEST_TEXT = 16


def bucket(size: int, *, steps: int) -> int:
    """The smallest of the sizes 1, 2, 4, 8, ... with `steps` sizes in each doubling that holds `size`; 0 stays 0."""
    if size <= steps:
        return 0 if size == 0 else 1 << (size - 1).bit_length()
    step = max(1, (1 << (size - 1).bit_length()) // 2 // steps)
    return -(-size // step) * step


def image_slots(images: int) -> int:
    """Room for images: 0, 1, 2, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, ..."""
    return bucket(images, steps=4)


def text_slots(tokens: int) -> int:
    """Room for text in the cache: 64, 96, 128, 192, 256, 384, 512, ..."""
    return max(64, bucket(tokens, steps=2))


def rows(prompts: int, divisor: int = 1) -> int:
    """Rows of a batch: a power of two times `divisor`."""
    return divisor * bucket(-(-prompts // divisor), steps=1)


def prefill_chunks(tokens: int) -> list[int]:
    """Lengths of the pieces in which `tokens` positions are prefilled: whole chunks, then one bucketed rest."""
    whole, rest = divmod(tokens, PREFILL_CHUNK)
    tail = [max(_SHORTEST_TEXT, bucket(rest, steps=2))] if rest or not whole else []
    return [PREFILL_CHUNK] * whole + tail


def prefill_slots(tokens: int) -> int:
    """Slots of the text cache that a prefill of `tokens` positions writes, padding included."""
    return sum(prefill_chunks(tokens))
