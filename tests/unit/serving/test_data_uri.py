"""What a data: URI holds, or why it is refused."""

import asyncio
import base64

import pytest

from owl3_jax.serving import data_uri
from owl3_jax.serving.media_refused import MediaKind, MediaRefused

ENCODED = base64.b64encode(b"pixels").decode()  # without padding


def decoded(uri: str, kind: MediaKind, limit: int) -> bytes:
    return asyncio.run(data_uri.decode_data_uri(uri, kind, limit))


@pytest.mark.parametrize(
    ("header", "kind"),
    [
        ("data:image/png;base64,", "image"),
        ("DATA:IMAGE/PNG;BASE64,", "image"),
        ("data:image/jpeg;name=cat.jpg;base64,", "image"),
        ("data:;base64,", "image"),
        ("data:application/octet-stream;base64,", "video"),
        ("data:video/mp4;base64,", "video"),
        ("data:image/gif;base64,", "video"),
    ],
)
def test_base64_is_decoded(header, kind):
    assert decoded(header + ENCODED, kind, 6) == b"pixels"


@pytest.mark.parametrize("content", [b"", b"p", b"pi", b"pix", bytes(range(256))])
def test_any_bytes_come_back(content):
    uri = "data:image/png;base64," + base64.b64encode(content).decode()
    assert decoded(uri, "image", max(len(content), 1)) == content


@pytest.mark.parametrize(
    ("uri", "code"),
    [
        pytest.param("data:", "media_invalid", id="blank"),
        pytest.param("data:image/png;base64", "media_invalid", id="no-comma"),
        pytest.param("data:image/png," + ENCODED, "media_invalid", id="not-base64"),
        pytest.param("data:image/png;base64;x=1," + ENCODED, "media_invalid", id="base64-not-last"),
        pytest.param("data:image/png" + ";a=b" * 100 + ";base64," + ENCODED, "media_invalid", id="long-header"),
        pytest.param("data:text/html;base64," + ENCODED, "media_invalid", id="html"),
        pytest.param("data:video/mp4;base64," + ENCODED, "media_invalid", id="video-as-image"),
        pytest.param("data:imagex/png;base64," + ENCODED, "media_invalid", id="almost-image"),
        pytest.param("data:image;base64," + ENCODED, "media_invalid", id="no-subtype"),
        pytest.param("data:image/png;base64,cGl4ZWx", "media_invalid", id="padding-missing"),
        pytest.param("data:image/png;base64,cGl4\nZWxz", "media_invalid", id="new-line"),
        pytest.param("data:image/png;base64,cGl4 ZWxz", "media_invalid", id="space"),
        pytest.param("data:image/png;base64,_-8=", "media_invalid", id="alphabet-of-urls"),
        pytest.param("data:image/png;base64,cA%3D%3D", "media_invalid", id="percent-encoded"),
        pytest.param("data:image/png;base64,cA==cA==", "media_invalid", id="twice"),
        pytest.param("data:image/png;base64,====", "media_invalid", id="padding-alone"),
        pytest.param("data:image/png;base64,héé=", "media_invalid", id="not-ascii"),
        pytest.param("data:image/png;base64,\ud800\ud800\ud800\ud800", "media_invalid", id="lone-surrogates"),
        pytest.param("data:image/png;base64,AAAAAAAAAAA=", "media_too_large", id="two-bytes-too-many"),
        pytest.param("data:image/png;base64,AAAAAAAAAA==", "media_too_large", id="one-byte-too-many"),
        pytest.param("data:image/png;base64," + "!" * 10**6, "media_too_large", id="huge-and-wrong"),
    ],
)
def test_anything_else_is_refused(uri, code):
    with pytest.raises(MediaRefused) as raised:
        decoded(uri, "image", 6)
    assert raised.value.code == code
    assert len(str(raised.value)) < 300


def test_the_size_is_checked_before_decoding(monkeypatch):
    monkeypatch.setattr("binascii.a2b_base64", lambda *_args, **_options: pytest.fail("it was decoded"))
    with pytest.raises(MediaRefused, match="more than the 1000 bytes"):
        decoded("data:image/png;base64," + "A" * 2000, "image", 1000)


@pytest.mark.parametrize("size", [6, 8, 9, 10, 11, 12, 1000])
def test_long_ones_are_decoded_slice_by_slice(monkeypatch, size):
    monkeypatch.setattr(data_uri, "_SLICE", 8)
    content = bytes(range(250)) * 4
    assert decoded("data:;base64," + base64.b64encode(content[:size]).decode(), "image", 1000) == content[:size]


@pytest.mark.parametrize(
    "encoded", ["AAAAAAA=AAAA", "AAAAAA==AAAA", "AAAAAA==AAA=", "AAAA====AAAA", "AAAAAAAA=", "AAAAAAAAA", "AAA=AAAA"]
)
def test_padding_in_the_middle_is_refused_wherever_a_slice_ends(monkeypatch, encoded):
    monkeypatch.setattr(data_uri, "_SLICE", 8)
    with pytest.raises(MediaRefused, match="is not base64"):
        decoded("data:;base64," + encoded, "image", 1000)


def test_a_long_one_lets_others_have_their_turns(monkeypatch):
    monkeypatch.setattr(data_uri, "_SLICE", 8)

    async def scenario() -> int:
        turns = 0
        task = asyncio.create_task(data_uri.decode_data_uri("data:;base64," + "A" * 800, "image", 1000))
        while not task.done():
            await asyncio.sleep(0)
            turns += 1
        return turns

    assert asyncio.run(scenario()) >= 100
