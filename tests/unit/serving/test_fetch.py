"""The kinds of URL that a fetcher takes, and what a policy leaves on by default: nothing but data: URIs."""

import asyncio
import threading
from pathlib import Path

import pytest

from owl3_jax.serving import fetch
from owl3_jax.serving.fetch import MediaFetcher
from owl3_jax.serving.media_policy import MediaPolicy
from owl3_jax.serving.media_refused import MediaKind, MediaRefused


def fetched(url: str, policy: MediaPolicy | None = None, kind: MediaKind = "image") -> bytes:
    """What comes of a URL, without looking up any name."""

    async def scenario() -> bytes:
        async with MediaFetcher(policy or MediaPolicy(), lookup=lambda host: pytest.fail(f"{host} was looked up")) as fetcher:
            return await fetcher.fetch(url, kind)

    return asyncio.run(scenario())


def test_data_uris_are_always_taken():
    assert fetched("data:image/png;base64,cGl4ZWxz") == b"pixels"
    assert fetched("DATA:video/mp4;base64,cGl4ZWxz", kind="video") == b"pixels"


def test_files_are_read_below_the_folder_that_is_open(tmp_path):
    (tmp_path / "cat.png").write_bytes(b"pixels")
    assert fetched(f"file://{tmp_path}/cat.png", MediaPolicy(local_path=tmp_path)) == b"pixels"
    with pytest.raises(MediaRefused, match="outside the folder"):
        fetched("file:///etc/passwd", MediaPolicy(local_path=tmp_path))


def test_what_is_fetched_is_charged(tmp_path):
    (tmp_path / "cat.png").write_bytes(b"pixels")
    charged: list[int] = []

    async def scenario() -> None:
        async with MediaFetcher(MediaPolicy(local_path=tmp_path)) as fetcher:
            await fetcher.fetch("data:image/png;base64,cGl4ZWxzcw==", "image", charged.append)
            await fetcher.fetch(f"file://{tmp_path}/cat.png", "image", charged.append)

    asyncio.run(scenario())
    assert charged == [7, 6]


@pytest.mark.parametrize(
    ("url", "code"),
    [
        pytest.param("https://media.example/cat.png", "media_refused", id="https"),
        pytest.param("http://media.example/cat.png", "media_refused", id="http"),
        pytest.param("https://169.254.169.254/latest/meta-data/", "media_refused", id="metadata"),
        pytest.param("file:///etc/passwd", "media_refused", id="file"),
        pytest.param("ftp://media.example/cat.png", "media_invalid", id="ftp"),
        pytest.param("gopher://media.example/_GET", "media_invalid", id="gopher"),
        pytest.param("gs://bucket/cat.png", "media_invalid", id="bucket"),
        pytest.param("blob:https://media.example/1", "media_invalid", id="blob"),
        pytest.param("javascript:alert(1)", "media_invalid", id="javascript"),
        pytest.param("jar:https://media.example!/cat.png", "media_invalid", id="jar"),
        pytest.param("unix:/run/docker.sock", "media_invalid", id="socket"),
        pytest.param("/etc/passwd", "media_invalid", id="path"),
        pytest.param("cat.png", "media_invalid", id="relative-path"),
        pytest.param("C:\\cat.png", "media_invalid", id="path-of-windows"),
        pytest.param("//media.example/cat.png", "media_invalid", id="without-scheme"),
        pytest.param("", "media_invalid", id="empty"),
        pytest.param(" ", "media_invalid", id="blank"),
        pytest.param(" data:image/png;base64,cGl4ZWxz", "media_invalid", id="leading-space"),
        pytest.param("data :image/png;base64,cGl4ZWxz", "media_invalid", id="space-in-scheme"),
        pytest.param("a" * 10**6 + ":", "media_invalid", id="long-scheme"),
        pytest.param("\ud800:", "media_invalid", id="lone-surrogate"),
        pytest.param("data:image/png;base64,", "media_invalid", id="empty-data"),
    ],
)
def test_anything_else_is_refused(url, code):
    with pytest.raises(MediaRefused) as raised:
        fetched(url)
    assert raised.value.code == code
    assert len(str(raised.value)) < 300


def test_images_and_videos_have_limits_of_their_own(tmp_path):
    (tmp_path / "media").write_bytes(b"pixels")
    policy = MediaPolicy(local_path=tmp_path, max_image_bytes=5, max_video_bytes=6)
    for url in (f"file://{tmp_path}/media", "data:;base64,cGl4ZWxz"):
        assert fetched(url, policy, "video") == b"pixels"
        with pytest.raises(MediaRefused, match="the image has more than the 5 bytes"):
            fetched(url, policy, "image")


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "empty.png").touch()
    with pytest.raises(MediaRefused, match="the image is empty"):
        fetched(f"file://{tmp_path}/empty.png", MediaPolicy(local_path=tmp_path))


def test_a_disk_that_hangs_is_given_up(tmp_path, monkeypatch):
    answer = threading.Event()
    monkeypatch.setattr(fetch, "read_local", lambda *_arguments: answer.wait() and b"pixels")

    async def scenario() -> None:
        async with MediaFetcher(MediaPolicy(local_path=tmp_path, timeout=0.1)) as fetcher:
            with pytest.raises(MediaRefused, match=r"could not be read within 0\.1 s") as raised:
                await fetcher.fetch(f"file://{tmp_path}/cat.png", "image")
            assert raised.value.code == "media_timeout"

    try:
        asyncio.run(scenario())
    finally:
        answer.set()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"allowed_domains": ("media.example", "*")}, "'\\*' is no domain"),
        ({"allowed_domains": ("127.0.0.1",)}, "is an address"),
        ({"local_path": Path("/nowhere")}, "'/nowhere' is no folder"),
        ({"max_image_bytes": 0}, "`max_image_bytes` should be above 0"),
        ({"timeout": -1.0}, "`timeout` should be above 0"),
        ({"timeout": float("nan")}, "`timeout` should be above 0"),
        ({"max_redirects": -1}, "`max_redirects` should be 0 or more"),
    ],
)
def test_a_policy_that_makes_no_sense_is_an_error(changes, message):
    with pytest.raises(ValueError, match=message):
        MediaPolicy(**changes)
