"""What containers state about their length, on bytes written by hand."""

import io

import pytest

from owl3_jax.processing.video_ending import is_cut_off

ASF = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")


def box(size: int, content: int) -> bytes:
    return size.to_bytes(4, "big") + b"mdat" + bytes(content)


def riff(size: int, content: int) -> bytes:
    return b"RIFF" + size.to_bytes(4, "little") + bytes(content)


def segment(length: bytes, content: int) -> bytes:
    return b"\x1a\x45\xdf\xa3\x80\x18\x53\x80\x67" + length + bytes(content)


def asf(size: int, content: int, flags: int = 2) -> bytes:
    return bytes(30) + ASF + bytes(24) + size.to_bytes(8, "little") + bytes(40) + bytes([flags, 0, 0, 0]) + bytes(content)


def tag(size: int, content: int, length: int) -> bytes:
    return b"FLV" + bytes(10) + b"\x09" + size.to_bytes(3, "big") + bytes(7 + content) + length.to_bytes(4, "big")


@pytest.mark.parametrize(
    ("container", "content", "expected"),
    [
        ("mov,mp4,m4a,3gp,3g2,mj2", box(28, 20) + box(8, 0), False),
        ("mov,mp4,m4a,3gp,3g2,mj2", box(28, 20) + box(9, 0), True),
        ("mov,mp4,m4a,3gp,3g2,mj2", box(1, 0) + (20).to_bytes(8, "big") + bytes(4), False),
        ("mov,mp4,m4a,3gp,3g2,mj2", box(1, 0) + (21).to_bytes(8, "big") + bytes(4), True),
        ("mov,mp4,m4a,3gp,3g2,mj2", box(0, 50), False),  # to the end of the file
        ("mov,mp4,m4a,3gp,3g2,mj2", box(28, 20) + bytes(50), False),  # padding
        ("avi", riff(20, 20), False),
        ("avi", riff(21, 20), True),
        ("avi", riff(20, 20) + riff(5, 4), True),  # files above 2 GB have several
        ("avi", riff(0, 20), False),  # the recorder did not get to fill it in
        ("matroska,webm", segment(b"\x8a", 10), False),
        ("matroska,webm", segment(b"\x8b", 10), True),
        ("matroska,webm", segment(b"\x01" + (10).to_bytes(7, "big"), 10), False),
        ("matroska,webm", segment(b"\x01" + (11).to_bytes(7, "big"), 10), True),
        ("matroska,webm", segment(b"\x01" + b"\xff" * 7, 10), False),  # a live recording
        ("matroska,webm", segment(b"\xff", 10), False),
        ("matroska,webm", segment(b"", 0), False),
        ("asf", asf(172, 50), False),
        ("asf", asf(173, 50), True),
        ("asf", asf(173, 50, flags=1), False),  # a live recording
        ("asf", bytes(50), False),
        ("flv", tag(20, 20, 31), False),
        ("flv", tag(20, 20, 31)[:-1], True),
        ("flv", tag(21, 20, 31), True),
        ("flv", tag(20, 20, 31) + bytes(5), True),
        ("mpegts", bytes(188), False),
        ("ogg", b"OggS", False),
        *((container, b"", container == "flv") for container in ("mov", "avi", "matroska", "asf", "flv")),
    ],
)
def test_a_file_that_ends_before_it_should(container, content, expected):
    assert is_cut_off(io.BytesIO(content), container) == expected
