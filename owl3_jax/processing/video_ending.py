"""Whether a video file was cut off, by the sizes that it states.

A stated duration alone proves nothing: the last frame of a slide show is held for minutes, and times wrap around.
"""

import io
import os

File = io.BufferedReader | io.BytesIO

_SEGMENT = b"\x18\x53\x80\x67"  # the Matroska element that holds all pictures and sounds
_ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_ASF_SIZE_AT, _ASF_FLAGS_AT = 40, 88  # bytes from the start of the properties to the size of the file and to the flags
_ASF_LIVE = 1  # flag: the size was not known yet
_HEAD = 1 << 16  # bytes in which the headers of Matroska and ASF stand
_FLV_TAG = 11  # bytes of the header of a tag
_FLV_TYPES = (8, 9, 18)  # sound, pictures, metadata


def is_cut_off(file: File, container: str) -> bool:
    """Whether `file` ends earlier than it states; False where it states nothing.

    Args:
        file: open for reading.
        container: FFmpeg's name of its format.
    """
    size = file.seek(0, os.SEEK_END)
    match container.partition(",")[0]:
        case "mov":
            return _last_box_ends(file, size) > size
        case "avi":
            return _last_riff_ends(file, size) > size
        case "matroska":
            return _segment_ends(_head(file)) > size
        case "asf":
            return _asf_size(_head(file)) > size
        case "flv":
            return not _ends_with_an_flv_tag(file, size)
    return False


def _last_box_ends(file: File, size: int) -> int:
    end = 0
    while end + 8 <= size:
        header = _read_at(file, end, 16)
        length = int.from_bytes(header[:4], "big")
        if length == 1:  # the size needs 64 bits
            length = int.from_bytes(header[8:], "big")
        if length < 8:  # to the end of the file, or padding
            return size
        end += length
    return end


def _last_riff_ends(file: File, size: int) -> int:
    end = 0
    while end + 8 <= size:
        header = _read_at(file, end, 8)
        if header[:4] != b"RIFF":  # padding, or a recording whose sizes were never filled in
            return size
        end += 8 + int.from_bytes(header[4:], "little")
    return end


def _segment_ends(head: bytes) -> int:
    start = head.find(_SEGMENT) + len(_SEGMENT)
    if start < len(_SEGMENT) or not head[start : start + 1]:
        return 0
    width = 9 - head[start].bit_length()  # leading zeros of the first byte count the bytes that follow it
    unknown = (1 << 7 * width) - 1
    length = int.from_bytes(head[start : start + width], "big") & unknown
    return 0 if length == unknown else start + width + length


def _asf_size(head: bytes) -> int:
    start = head.find(_ASF_PROPERTIES)
    size = head[start + _ASF_SIZE_AT : start + _ASF_SIZE_AT + 8]
    flags = head[start + _ASF_FLAGS_AT : start + _ASF_FLAGS_AT + 4]
    if start < 0 or int.from_bytes(flags, "little") & _ASF_LIVE:
        return 0
    return int.from_bytes(size, "little")


def _ends_with_an_flv_tag(file: File, size: int) -> bool:
    length = int.from_bytes(_read_at(file, size - 4, 4), "big")  # of the tag before, its header included
    start = size - 4 - length
    if length < _FLV_TAG or start < 0:
        return False
    tag = _read_at(file, start, 4)
    return tag[0] & 0x1F in _FLV_TYPES and int.from_bytes(tag[1:], "big") + _FLV_TAG == length


def _head(file: File) -> bytes:
    return _read_at(file, 0, _HEAD)


def _read_at(file: File, position: int, size: int) -> bytes:
    file.seek(max(0, position))
    return file.read(size)
