"""Attacks by files: bombs, headers that claim too much, formats that make a decoder open other things."""

import io
import struct
import zlib
from collections.abc import Iterator, Mapping

from PIL import Image, PngImagePlugin

from serving_checks.attack import Attack, Target, post
from serving_checks.faults import chat_body, image_body, png_that_claims
from serving_checks.questions import data_uri

_IMAGES, _VIDEOS = "images", "videos"
_ANSWERED_OR_REFUSED = (200, 400)  # what may be read as far as it is good


def media_attacks(target: Target) -> Iterator[Attack]:
    """All of them."""
    for name, (content, allowed) in _images(target.web_port).items():
        yield Attack(_IMAGES, name, post(target, image_body(target.model, data_uri(content), max_tokens=1)), allowed)
    for name, (content, allowed) in _videos(target.web_port).items():
        video = {"type": "video_url", "video_url": {"url": data_uri(content, "video/mp4")}}
        yield Attack(_VIDEOS, name, post(target, chat_body(target.model, [video], max_tokens=1)), allowed)
    for name, url in _uris().items():
        yield Attack(_IMAGES, name, post(target, image_body(target.model, url, max_tokens=1)), (400, 413))
    tiny = data_uri(_saved(Image.new("RGB", (1, 1)), "png"))
    many = [{"type": "image_url", "image_url": {"url": tiny}}] * 600
    yield Attack(_IMAGES, "600 images", post(target, chat_body(target.model, many)), (400,))
    frames = {"type": "image_url", "image_url": [tiny] * 4000}
    yield Attack(_VIDEOS, "4000 frames", post(target, chat_body(target.model, [frames])), (400,))


def _images(port: int) -> Mapping[str, tuple[bytes, tuple[int, ...]]]:
    refused = (400,)
    zeros = Image.new("1", (20_000, 20_000))
    gif = b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b"\x2c" + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0)
    webp = b"VP8L" + struct.pack("<I", 5) + b"\x2f" + struct.pack("<I", 0x0FFFFFFF) + b"\0"
    bmp = (
        b"BM"
        + struct.pack("<IHHI", 100, 0, 0, 54)
        + struct.pack("<IiiHHIIiiII", 40, 2**31 - 1, 2**31 - 1, 1, 24, 0, 0, 0, 0, 0, 0)
    )
    jpeg = (
        b"\xff\xd8\xff\xc0\x00\x11\x08" + struct.pack(">HH", 65500, 65500) + b"\x03\x01\x11\0\x02\x11\x01\x03\x11\x01\xff\xd9"
    )
    tiff = b"II*\0\x08\0\0\0\x02\0" + struct.pack("<HHII", 256, 4, 1, 2**31) + struct.pack("<HHII", 257, 4, 1, 2**31) + bytes(4)
    svg = f'<!DOCTYPE x [<!ENTITY e SYSTEM "http://127.0.0.1:{port}/">]><svg><text>&e;</text></svg>'.encode()
    text = PngImagePlugin.PngInfo()
    text.add_text("bomb", "x" * 50_000_000, zip=True)
    return {
        "PNG of 10^10 pixels, by its header": (png_that_claims(100_000, 100_000), refused),
        "PNG of 4 * 10^8 pixels in 50 kB": (_saved(zeros, "png"), refused),
        "PNG of 2^62 pixels, by its header": (png_that_claims(2**31 - 1, 2**31 - 1), refused),
        "PNG with 50 MB of text in 50 kB": (_saved(Image.new("RGB", (8, 8)), "png", pnginfo=text), _ANSWERED_OR_REFUSED),
        "PNG with a colour profile that is a bomb": (_png_with_profile(), _ANSWERED_OR_REFUSED),
        "GIF of 65535 x 65535": (gif + b"\x02\x01\x00\x3b", refused),
        "GIF of 20000 frames": (_gif_of_frames(20_000), _ANSWERED_OR_REFUSED),
        "WebP of 16384 x 16384, by its header": (b"RIFF" + struct.pack("<I", len(webp) + 4) + b"WEBP" + webp, refused),
        "WebP of 9 * 10^6 pixels in 20 kB": (_saved(Image.new("RGB", (3000, 3000)), "webp", quality=1, method=0), refused),
        "BMP of 2^62 pixels": (bmp + bytes(100), refused),
        "JPEG of 65500 x 65500, by its header": (jpeg, refused),
        "TIFF of 2^62 pixels": (tiff, refused),
        "PPM of 10^12 pixels": (b"P6 1000000 1000000 255\n" + bytes(100), refused),
        "SVG with an entity of another host": (svg, refused),
        "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\n", refused),
        "PDF": (b"%PDF-1.4\n1 0 obj<</Type/Catalog>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF", refused),
        "ICO around a PNG of 10^10 pixels": (_ico(png_that_claims(100_000, 100_000)), refused),
        "a gzip file": (zlib.compress(bytes(10**7)), refused),
    }


def _videos(port: int) -> Mapping[str, tuple[bytes, tuple[int, ...]]]:
    refused = (400,)
    canary = f"http://127.0.0.1:{port}"
    start = b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom"
    avi_header = b"avih" + struct.pack("<I", 56) + struct.pack("<14I", *[2**31 - 1] * 14)
    avi = b"LIST" + struct.pack("<I", len(avi_header) + 4) + b"hdrl" + avi_header
    return {
        "MP4 whose box has 2^63 bytes": (start + b"\0\0\0\x01moov" + struct.pack(">Q", 2**63 - 1), refused),
        "MP4 whose box has no bytes": (start + b"\0\0\0\0moov" * 1000, refused),
        "MP4 of boxes within boxes": (
            start + b"".join(struct.pack(">I", 8 * n) + b"moov" for n in range(20_000, 0, -1)),
            refused,
        ),
        "AVI of 2^31 pixels a row": (b"RIFF" + struct.pack("<I", len(avi) + 4) + b"AVI " + avi, refused),
        "Matroska of unknown sizes": (b"\x1a\x45\xdf\xa3\x01\xff\xff\xff\xff\xff\xff\xff" * 100, refused),
        "Y4M of 10^12 pixels": (b"YUV4MPEG2 W1000000 H1000000 F25:1 Ip A1:1 C420\nFRAME\n" + bytes(1000), refused),
        "a playlist of another host": (
            f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{canary}/a.ts\n#EXT-X-ENDLIST\n".encode(),
            refused,
        ),
        "a playlist of local files": (
            b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n",
            refused,
        ),
        "a list of files to join": (b"ffconcat version 1.0\nfile /etc/passwd\n", refused),
        "a session that another host describes": (b"v=0\no=- 0 0 IN IP4 127.0.0.1\nm=video 9999 RTP/AVP 96\n", refused),
        "a manifest of another host": (f"<?xml version='1.0'?><MPD><BaseURL>{canary}/</BaseURL></MPD>".encode(), refused),
        "GIF of 65535 x 65535 as a video": (b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + bytes(100), refused),
        "noise": (bytes(range(256)) * 400, refused),
    }


def _uris() -> Mapping[str, str]:
    return {
        "10^6 options in a data: URI": "data:image/png" + ";a=b" * 10**6 + ";base64,AAAA",
        "a data: URI of no image": "data:text/html;base64,PGh0bWw+",
        "base64 without an end": "data:image/png;base64," + "=" * 10**5,
        "letters that base64 has not": "data:image/png;base64,\u0410\u0411\u0412",
        "a data: URI in no base64": "data:image/png,%89PNG",
    }


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _gif_of_frames(count: int) -> bytes:
    head = b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0x80, 0, 0) + bytes(6)
    frame = b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00"
    return head + frame * count + b"\x3b"


def _png_with_profile() -> bytes:
    whole = _saved(Image.new("RGB", (8, 8)), "png")
    content = b"x\0\0" + zlib.compress(bytes(50_000_000))
    chunk = struct.pack(">I", len(content)) + b"iCCP" + content + struct.pack(">I", zlib.crc32(b"iCCP" + content))
    return whole[:33] + chunk + whole[33:]


def _ico(content: bytes) -> bytes:
    return struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 0, 0, 0, 0, 1, 32, len(content), 22) + content
