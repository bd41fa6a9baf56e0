"""Ways to damage a file, as networks, disks, editors and careless writers do."""

from collections.abc import Callable, Sequence

import numpy as np

_MOST = 6  # damages of one file
_NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1)
_WIDTHS = (1, 2, 4, 8)  # bytes of a number
_HEADER = 256  # bytes at the beginning, which half of all damages hit


def mutate(content: bytes, others: Sequence[bytes], rng: np.random.Generator) -> bytes:
    """One to six damages of a file, chosen by `rng`. `others` are files that pieces may come from."""
    damaged = bytearray(content)
    for _ in range(rng.integers(1, _MOST, endpoint=True)):
        if not damaged:
            break
        DAMAGES[rng.integers(len(DAMAGES))](damaged, others, rng)
    return bytes(damaged)


def _place(damaged: bytearray, rng: np.random.Generator) -> int:
    end = min(len(damaged), _HEADER) if rng.random() < 0.5 else len(damaged)
    return int(rng.integers(end))


def _span(damaged: bytearray, rng: np.random.Generator) -> slice:
    """A short piece, rarely a long one."""
    start = _place(damaged, rng)
    return slice(start, start + int(rng.geometric(0.05 if rng.random() < 0.8 else 0.001)))


def _flip_bit(damaged: bytearray, others: Sequence[bytes], rng: np.random.Generator) -> None:
    damaged[_place(damaged, rng)] ^= 1 << int(rng.integers(8))


def _random_byte(damaged: bytearray, others: Sequence[bytes], rng: np.random.Generator) -> None:
    damaged[_place(damaged, rng)] = int(rng.integers(256))


def _number(damaged: bytearray, others: Sequence[bytes], rng: np.random.Generator) -> None:
    """Writes a number that readers stumble over: none, one, the largest, the largest with a sign."""
    width = int(rng.choice(_WIDTHS))
    value = _NUMBERS[rng.integers(len(_NUMBERS))] % 256**width
    start = _place(damaged, rng)
    damaged[start : start + width] = value.to_bytes(width, "big" if rng.random() < 0.5 else "little")


def _truncate(damaged: bytearray, others: Sequence[bytes], rng: np.random.Generator) -> None:
    del damaged[_place(damaged, rng) :]


def _delete(damaged: bytearray, others: Sequence[bytes], rng: np.random.Generator) -> None:
    del damaged[_span(damaged, rng)]


def _repeat(damaged: bytearray, others: Sequence[bytes], rng: np.random.Generator) -> None:
    span = _span(damaged, rng)
    damaged[span.start : span.start] = damaged[span] * int(rng.integers(1, 4))


def _blank(damaged: bytearray, others: Sequence[bytes], rng: np.random.Generator) -> None:
    span = _span(damaged, rng)
    damaged[span] = bytes([int(rng.choice([0, 0xFF]))]) * len(damaged[span])


def _noise(damaged: bytearray, others: Sequence[bytes], rng: np.random.Generator) -> None:
    span = _span(damaged, rng)
    damaged[span] = rng.bytes(len(damaged[span]))


def _exchange(damaged: bytearray, others: Sequence[bytes], rng: np.random.Generator) -> None:
    """A piece moves to another place."""
    span = _span(damaged, rng)
    piece = bytes(damaged[span])
    del damaged[span]
    place = _place(damaged, rng) if damaged else 0
    damaged[place:place] = piece


def _splice(damaged: bytearray, others: Sequence[bytes], rng: np.random.Generator) -> None:
    """A piece of another file takes the place of one of this file."""
    other = bytearray(others[int(rng.integers(len(others)))])
    damaged[_span(damaged, rng)] = other[_span(other, rng)]


Damage = Callable[[bytearray, Sequence[bytes], np.random.Generator], None]
DAMAGES: tuple[Damage, ...] = (
    _flip_bit,
    _random_byte,
    _number,
    _number,  # twice as often as the others: headers are made of numbers
    _truncate,
    _delete,
    _repeat,
    _blank,
    _noise,
    _exchange,
    _splice,
)
