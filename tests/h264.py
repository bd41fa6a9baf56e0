"""Interlaced H.264, written bit by bit, since no encoder here codes the two fields of a frame separately."""

import re
from collections.abc import Iterable

from tests.videos import HEIGHT, WIDTH

_BLOCK = 16  # pixels
_COLUMNS, _FIELD_ROWS = WIDTH // _BLOCK, HEIGHT // _BLOCK // 2
_BLACK, _WHITE, _GREY = 16, 235, 128
_UNCODED = 25  # type of a block whose pixels are stored as they are


def headers(*, interlaced: bool = True, high: bool = False) -> bytes:
    """The parameters of the sequence and of its pictures; `high` spells out those that only higher profiles have."""
    sequence = f"{100 if high else 77:08b}{0:08b}{30:08b}" + _codes(0)
    if high:
        scaling_list = "1" + _codes(1, 18)  # one up, nine down to zero: the rest repeats
        sequence += _codes(1, 0, 0) + "01" + scaling_list + 7 * "0"
    sequence += _codes(0, 2, 1) + "0" + _codes(_COLUMNS - 1, (_FIELD_ROWS if interlaced else 2 * _FIELD_ROWS) - 1)
    sequence += ("00" if interlaced else "1") + "100"
    picture = _codes(0, 0) + "00" + _codes(0, 0, 0) + "000" + _codes(0, 0, 0) + "000"
    return _unit(0x67, sequence + "1") + _unit(0x68, picture + "1")


def field(number: int, *, bottom: bool) -> bytes:
    """Every second row of `tests.videos.number_image(number)`: the first or, with `bottom`, the second of two packets."""
    bits = _codes(0, 7, 0) + "0000" + ("11" + "0" if bottom else "10" + _codes(number % 2) + "00") + _codes(0)
    for block in range(_COLUMNS * _FIELD_ROWS):
        bits = _aligned(bits + _codes(_UNCODED))
        brightness = _WHITE if number >> block % _COLUMNS & 1 else _BLACK
        bits += f"{brightness:08b}" * _BLOCK**2 + f"{_GREY:08b}" * (_BLOCK**2 // 2)
    return _unit(0x61 if bottom else 0x65, bits + "1")


def _codes(*numbers: int) -> str:
    """Exponential-Golomb codes."""
    return "".join(_code(f"{number + 1:b}") for number in numbers)


def _code(digits: str) -> str:
    return "0" * (len(digits) - 1) + digits


def _unit(kind: int, bits: str) -> bytes:
    aligned = _aligned(bits)
    content = int(aligned, 2).to_bytes(len(aligned) // 8, "big")
    return b"\0\0\0\1" + bytes([kind]) + re.sub(rb"\0\0(?=[\0-\3])", b"\0\0\3", content)


def _aligned(bits: str) -> str:
    return bits + "0" * (-len(bits) % 8)


def with_lengths(units: Iterable[bytes]) -> bytes:
    """Units as MP4 has them: their lengths in place of start codes."""
    return b"".join((len(unit) - 4).to_bytes(4, "big") + unit[4:] for unit in units)
