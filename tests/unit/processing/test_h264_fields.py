"""Which packets are fields, and which of them make a frame."""

import pytest

from owl3_jax.processing.h264_fields import Field, FieldCoding, field_coding, pictures, read_field
from tests import h264

CODING = FieldCoding(frame_number_bits=4, has_planes=False, length_bytes=0)
TOP, BOTTOM = h264.field(5, bottom=False), h264.field(5, bottom=True)


@pytest.mark.parametrize("high", [False, True])
def test_parameters_say_whether_there_are_fields(high):
    assert field_coding(h264.headers(high=high)) == CODING
    assert field_coding(h264.headers(interlaced=False, high=high)) is None


@pytest.mark.parametrize("extradata", [b"", b"\1", b"\0\0\1", b"\0\0\1\x67", b"\0\0\1\x67\x64\0\x1e", h264.headers()[:10]])
def test_unreadable_parameters_say_that_there_are_none(extradata):
    assert field_coding(extradata) is None


def test_parameters_of_mp4_stand_behind_their_length():
    units = [b"\0\0\0\1" + unit for unit in h264.headers().split(b"\0\0\0\1")[1:]]
    extradata = b"\1" + units[0][5:8] + b"\xff\xe1" + (len(units[0]) - 4).to_bytes(2, "big") + units[0][4:]
    coding = field_coding(extradata)
    assert coding == CODING._replace(length_bytes=4)
    assert read_field(h264.with_lengths([*units, BOTTOM]), coding) == Field(0, is_bottom=True)


def test_fields_are_found_behind_other_units():
    assert read_field(h264.headers() + TOP, CODING) == Field(0, is_bottom=False)
    assert read_field(h264.headers() + BOTTOM, CODING) == Field(0, is_bottom=True)
    assert read_field(h264.headers(), CODING) is None
    assert read_field(BOTTOM[:6], CODING) is None
    assert read_field(b"\0\0\1\x65" + bytes(30), CODING) is None


@pytest.mark.parametrize(
    ("fields", "sizes"),
    [
        ([(0, False), (0, True), (1, False), (1, True)], [2, 2]),
        ([(0, True), (0, False), (1, True), (1, False)], [2, 2]),
        ([None, None, (2, False), (2, True), None], [1, 1, 2, 1]),
        ([(0, False), (1, False), (1, True)], [1, 2]),
        ([(3, False), (3, True), (3, False), (3, True)], [2, 2]),
        ([], []),
    ],
)
def test_two_fields_of_one_number_and_both_parities_are_a_picture(fields, sizes):
    packets = [field and Field(*field) for field in fields]
    found = list(pictures(packets, lambda packet: packet))
    assert [len(picture) for picture in found] == sizes
    assert [packet for picture in found for packet in picture] == packets
