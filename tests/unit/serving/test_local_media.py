"""Files below one folder are read, and nothing else is, whatever a file: URI says."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from owl3_jax.serving.local_media import read_local
from owl3_jax.serving.media_refused import MediaRefused

LIMIT = 100


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The folder that is open, beside a file that is not."""
    folder = tmp_path / "media"
    (folder / "cats").mkdir(parents=True)
    (folder / "cats" / "one cat.png").write_bytes(b"pixels")
    (folder / "cat.png").write_bytes(b"pixels")
    (tmp_path / "secret.png").write_bytes(b"secret")
    (tmp_path / "media-too").mkdir()
    (tmp_path / "media-too" / "cat.png").write_bytes(b"secret")
    return folder


@pytest.mark.parametrize(
    "uri",
    [
        "file://{root}/cat.png",
        "FILE://LOCALHOST{root}/cat.png",
        "file:{root}/cat.png",
        "file:///{root}//./cat.png",
        "file://{root}/cats/one%20cat.png",
        "file://{root}/c%61t.png",
        "file://{root}/inside",
        "file://{root}/inside-folder/one%20cat.png",
    ],
)
def test_a_file_below_the_folder_is_read(root, uri):
    (root / "inside").symlink_to("cats/one cat.png")
    (root / "inside-folder").symlink_to(root / "cats")
    assert read_local(uri.format(root=root), "image", root, 6) == b"pixels"


def test_the_folder_may_be_behind_a_link(root, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(root)
    for folder in (root, link):
        assert read_local(f"file://{folder}/cat.png", "image", link, LIMIT) == b"pixels"


def test_the_folder_may_be_relative(root, monkeypatch):
    monkeypatch.chdir(root)
    assert read_local(f"file://{root}/cats/one%20cat.png", "image", Path("cats"), LIMIT) == b"pixels"


def _fifo(root: Path) -> None:
    os.mkfifo(root / "bad")


def _folder(root: Path) -> None:
    (root / "bad").mkdir()


def _loop(root: Path) -> None:
    (root / "bad").symlink_to("bad")


def _link(target: str) -> Callable[[Path], None]:
    return lambda root: (root / "bad").symlink_to(target)


def _large(root: Path) -> None:
    (root / "bad").write_bytes(bytes(LIMIT + 1))


def _sparse(root: Path) -> None:
    with (root / "bad").open("wb") as file:
        file.truncate(10**12)


def _closed(root: Path) -> None:
    (root / "bad").symlink_to("closed/cat.png")
    (root / "closed").write_bytes(b"a file and not a folder")


@pytest.mark.parametrize(
    ("prepare", "uri", "code"),
    [
        pytest.param(None, "file:///etc/passwd", "media_refused", id="elsewhere"),
        pytest.param(None, "file://{root}/../secret.png", "media_refused", id="traversal"),
        pytest.param(None, "file://{root}/%2e%2e/secret.png", "media_refused", id="traversal-encoded"),
        pytest.param(None, "file://{root}/..%2fsecret.png", "media_refused", id="traversal-encoded-slash"),
        pytest.param(None, "file://{root}/%252e%252e/secret.png", "media_unreachable", id="traversal-encoded-twice"),
        pytest.param(None, "file://{root}/cats/../cat.png", "media_refused", id="traversal-inside"),
        pytest.param(None, "file://{root}-too/cat.png", "media_refused", id="prefix-of-the-folder"),
        pytest.param(None, "file://{parent}/secret.png", "media_refused", id="folder-above"),
        pytest.param(None, "file://evil.example{root}/cat.png", "media_refused", id="other-host"),
        pytest.param(None, "file://user@localhost{root}/cat.png", "media_refused", id="user"),
        pytest.param(None, "file://localhost:80{root}/cat.png", "media_refused", id="port"),
        pytest.param(None, "file://[{root}/cat.png", "media_invalid", id="half-a-bracket"),
        pytest.param(None, "file:cat.png", "media_invalid", id="relative"),
        pytest.param(None, "file:", "media_invalid", id="blank"),
        pytest.param(None, "file://{root}/cat.png%00.jpg", "media_invalid", id="nul"),
        pytest.param(None, "file://{root}/cat.png?x=1", "media_invalid", id="query"),
        pytest.param(None, "file://{root}/cat.png#part", "media_invalid", id="fragment"),
        pytest.param(None, "file://{root}/\ud800", "media_invalid", id="lone-surrogate"),
        pytest.param(None, "file://{root}/%ff%fe", "media_unreachable", id="not-utf-8"),
        pytest.param(None, "file://{root}/" + "a" * 5000, "media_unreachable", id="long-name"),
        pytest.param(None, "file://{root}/missing.png", "media_unreachable", id="missing"),
        pytest.param(None, "file://{root}", "media_unreachable", id="the-folder"),
        pytest.param(_folder, "file://{root}/bad", "media_unreachable", id="folder"),
        pytest.param(_fifo, "file://{root}/bad", "media_unreachable", id="fifo"),
        pytest.param(_loop, "file://{root}/bad", "media_unreachable", id="link-to-itself"),
        pytest.param(_closed, "file://{root}/bad", "media_unreachable", id="file-as-folder"),
        pytest.param(_link("/dev/zero"), "file://{root}/bad", "media_refused", id="link-to-device"),
        pytest.param(_link("/proc/self/environ"), "file://{root}/bad", "media_refused", id="link-to-proc"),
        pytest.param(_link("../secret.png"), "file://{root}/bad", "media_refused", id="link-out"),
        pytest.param(_link(".."), "file://{root}/bad/secret.png", "media_refused", id="link-out-of-folder"),
        pytest.param(_link("/"), "file://{root}/bad/etc/passwd", "media_refused", id="link-to-everything"),
        pytest.param(_large, "file://{root}/bad", "media_too_large", id="large"),
        pytest.param(_sparse, "file://{root}/bad", "media_too_large", id="sparse"),
    ],
)
def test_anything_else_is_refused(root, prepare, uri, code):
    if prepare:
        prepare(root)
    with pytest.raises(MediaRefused) as raised:
        read_local(uri.format(root=root, parent=root.parent), "image", root, LIMIT)
    assert raised.value.code == code
    assert str(root.parent) not in str(raised.value)
    assert raised.value.__suppress_context__ or raised.value.__context__ is None


def _swap_file(root: Path) -> None:
    (root / "cat.png").unlink()
    (root / "cat.png").symlink_to(root.parent / "secret.png")


def _swap_folder(root: Path) -> None:
    (root / "cats").rename(root / "dogs")
    (root / "cats").symlink_to(root.parent)
    (root.parent / "one cat.png").write_bytes(b"secret")


def _swap_fifo(root: Path) -> None:
    (root / "cat.png").unlink()
    os.mkfifo(root / "cat.png")


@pytest.mark.parametrize(
    ("swap", "name"), [(_swap_file, "cat.png"), (_swap_folder, "cats/one%20cat.png"), (_swap_fifo, "cat.png")]
)
def test_what_is_put_in_place_of_a_checked_file_is_not_opened(root, monkeypatch, swap, name):
    realpath = os.path.realpath

    def resolve_then_swap(path: str | Path, *, strict: bool = False) -> str:
        resolved = realpath(path, strict=strict)
        if strict:
            swap(root)
        return resolved

    monkeypatch.setattr(os.path, "realpath", resolve_then_swap)
    with pytest.raises(MediaRefused) as raised:
        read_local(f"file://{root}/{name}", "image", root, LIMIT)
    assert raised.value.code == "media_unreachable"


@pytest.mark.parametrize("swap", [_swap_file, _swap_fifo])
def test_what_is_put_in_place_of_a_file_just_before_it_is_opened_is_not_read(root, monkeypatch, swap):
    look = os.stat

    def look_then_swap(path: str, *, dir_fd: int | None = None, follow_symlinks: bool = True) -> os.stat_result:
        status = look(path, dir_fd=dir_fd, follow_symlinks=follow_symlinks)
        if dir_fd is not None:
            swap(root)
        return status

    monkeypatch.setattr(os, "stat", look_then_swap)
    with pytest.raises(MediaRefused, match="no file that can be read"):
        read_local(f"file://{root}/cat.png", "image", root, LIMIT)


def test_a_file_that_grows_is_read_up_to_the_limit(root, monkeypatch):
    fstat = os.fstat

    def grow_after_a_look(descriptor: int) -> os.stat_result:
        status = fstat(descriptor)
        if stat.S_ISREG(status.st_mode):
            os.truncate(root / "cat.png", LIMIT + 1)
        return os.stat_result((*status[:6], 6, *status[7:]))

    monkeypatch.setattr(os, "fstat", grow_after_a_look)
    with pytest.raises(MediaRefused, match=f"more than the {LIMIT} bytes"):
        read_local(f"file://{root}/cat.png", "image", root, LIMIT)


def test_no_descriptor_stays_open(root):
    before = len([*Path("/dev/fd").iterdir()])
    os.mkfifo(root / "bad")
    for name in ("cat.png", "cats/one%20cat.png", "bad", "missing", "cats/missing/deep", "cats"):
        try:
            read_local(f"file://{root}/{name}", "image", root, LIMIT)
        except MediaRefused:
            continue
    assert len([*Path("/dev/fd").iterdir()]) == before
