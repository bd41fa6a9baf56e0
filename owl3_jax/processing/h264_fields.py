"""Pictures of interlaced H.264 whose two fields are packets of their own, as broadcasts and camcorders store them.

Only the headers of slices tell such fields from frames (ITU-T H.264, 7.3.2.1.1 and 7.3.3).
"""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeVar

_HIGH_PROFILES = (44, 83, 86, 100, 110, 118, 122, 128, 134, 135, 138, 139, 244)  # their parameters have more fields
_SLICES = (1, 5)  # types of units
_PARAMETERS = 7
_HEADER = 24  # bytes of a slice in which the header's first fields stand
_LONGEST_CODE = 32  # bits; a longer one is damaged

_Packet = TypeVar("_Packet")


class FieldCoding(NamedTuple):
    """What the parameters of a stream say about the headers of its slices."""

    frame_number_bits: int
    has_planes: bool  # each colour is coded by itself, and has a number
    length_bytes: int  # of the length before every unit; 0: start codes stand between units


class Field(NamedTuple):
    """Half of a frame: its even or its odd rows."""

    frame_number: int
    is_bottom: bool


def field_coding(extradata: bytes) -> FieldCoding | None:
    """How fields are coded by a stream with that `extradata`; None if it has none, or its parameters cannot be read."""
    has_lengths = extradata[:1] == b"\x01"
    units = [extradata[8:]] if has_lengths else [extradata[match.end() :] for match in re.finditer(b"\0\0\1", extradata)]
    parameters = next((unit for unit in units if unit and unit[0] & 31 == _PARAMETERS), b"")
    try:
        return _read_parameters(parameters, (extradata[4] & 3) + 1 if has_lengths else 0)
    except (ValueError, IndexError):
        return None


def pictures(packets: Iterable[_Packet], field_of: Callable[[_Packet], Field | None]) -> Iterator[list[_Packet]]:
    """The packets of each picture: one, or the two of its fields."""
    picture: list[_Packet] = []
    first: Field | None = None
    for packet in packets:
        field = field_of(packet)
        if first and field == Field(first.frame_number, not first.is_bottom):
            picture.append(packet)
            first = None
            continue
        if picture:
            yield picture
        picture, first = [packet], field
    if picture:
        yield picture


def read_field(packet: bytes, coding: FieldCoding) -> Field | None:
    """The field that a packet of the stream holds, None if it holds a frame or is damaged."""
    slices = (unit for unit in _units(packet, coding) if unit and unit[0] & 31 in _SLICES)
    try:
        return _read_slice(next(slices, b""), coding)
    except ValueError:
        return None


class _Bits:
    """Reads numbers from the most significant bit on."""

    def __init__(self, unit: bytes) -> None:
        escaped = unit.replace(b"\0\0\3", b"\0\0")
        self._value = int.from_bytes(escaped, "big")
        self._left = 8 * len(escaped)

    def number(self, bits: int) -> int:
        if bits > self._left:
            raise ValueError("the header is cut off")
        self._left -= bits
        return self._value >> self._left & (1 << bits) - 1

    def code(self) -> int:
        """An exponential-Golomb code without sign."""
        zeros = 0
        while not self.number(1):
            zeros += 1
            if zeros > _LONGEST_CODE:
                raise ValueError("the header is damaged")
        return (1 << zeros) - 1 + self.number(zeros)

    def signed(self) -> int:
        code = self.code()
        return (code + 1) // 2 if code % 2 else -code // 2


def _read_parameters(unit: bytes, length_bytes: int) -> FieldCoding | None:
    bits, profile = _Bits(unit[4:]), unit[1]
    bits.code()  # its number
    has_planes = _read_high_profile(bits) if profile in _HIGH_PROFILES else False
    frame_number_bits = bits.code() + 4
    order = bits.code()
    if order == 0:
        bits.code()
    elif order == 1:
        bits.number(1)
        bits.code(), bits.code()
        for _ in range(min(bits.code(), 255)):
            bits.code()
    bits.code()  # reference frames
    bits.number(1)
    bits.code(), bits.code()  # width and height
    has_frames_only = bits.number(1)
    return None if has_frames_only else FieldCoding(frame_number_bits, has_planes, length_bytes)


def _read_high_profile(bits: _Bits) -> bool:
    chroma = bits.code()
    has_planes = chroma == 3 and bool(bits.number(1))
    bits.code(), bits.code()  # bits of brightness and colour
    bits.number(1)
    if bits.number(1):
        for index in range(12 if chroma == 3 else 8):
            if bits.number(1):
                _skip_scaling_list(bits, 16 if index < 6 else 64)
    return has_planes


def _skip_scaling_list(bits: _Bits, size: int) -> None:
    scale = 8
    for _ in range(size):
        scale = (scale + bits.signed()) % 256
        if not scale:  # the rest repeats
            return


def _read_slice(unit: bytes, coding: FieldCoding) -> Field | None:
    bits = _Bits(unit[1:_HEADER])
    bits.code(), bits.code(), bits.code()  # first block, type, parameters
    if coding.has_planes:
        bits.number(2)
    frame_number = bits.number(coding.frame_number_bits)
    return Field(frame_number, bool(bits.number(1))) if bits.number(1) else None


def _units(packet: bytes, coding: FieldCoding) -> Iterator[bytes]:
    if not coding.length_bytes:
        for match in re.finditer(b"\0\0\1", packet):
            yield packet[match.end() : match.end() + _HEADER]
        return
    start = 0
    while start + coding.length_bytes < len(packet):
        length = int.from_bytes(packet[start : start + coding.length_bytes], "big")
        start += coding.length_bytes
        yield packet[start : start + _HEADER]
        start += length
