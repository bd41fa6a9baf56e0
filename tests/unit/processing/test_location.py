import base64
from pathlib import Path

import pytest

from owl3_jax.processing.location import display_name, is_uri, locate


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("photos/cat.jpg", Path("photos/cat.jpg")),
        (Path("data:,cat"), Path("data:,cat")),  # a Path is one, whatever it is called
        ("file:///tmp/a%20cat.jpg", Path("/tmp/a cat.jpg")),
        ("FILE://localhost/tmp/cat.jpg", Path("/tmp/cat.jpg")),
        ("data:image/png;base64," + base64.b64encode(b"\0\xffcat").decode(), b"\0\xffcat"),
        ("data:,a%20cat", b"a cat"),
        ("DATA:image/gif;BASE64,Y2F0", b"cat"),
        ("C:/cat.jpg", Path("C:/cat.jpg")),
        ("date:cat.jpg", Path("date:cat.jpg")),
    ],
)
def test_what_each_source_names(source: str | Path, found: Path | bytes):
    assert locate(source) == found
    assert is_uri(source) == (isinstance(source, str) and source[:5].lower() in ("file:", "data:"))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", "its path is empty"),
        ("https://example.org/cat.jpg", "files on the web are not fetched; download it"),
        ("file://server/cat.jpg", "another machine, 'server'"),
        ("data:image/png;base64", "has no comma"),
        ("data:image/png;base64,####", "not valid base64"),
        ("data:image/png;base64,Y2F", "not valid base64"),
    ],
)
def test_what_no_source_can_be(source: str, message: str):
    with pytest.raises(ValueError, match=message):
        locate(source)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("cat.jpg", "3 (cat.jpg)"),
        (Path("photos/cat.jpg"), "3 (photos/cat.jpg)"),
        (b"\x89PNG", "3"),
        ("", "3"),
        ("data:image/png;base64," + "A" * 10**6, "3 (data:image/png;base64, 1000022 characters)"),
        ("data:" + "A" * 10**6, f"3 (data:{'A' * 35}, 1000005 characters)"),
    ],
)
def test_its_name_in_messages(source: object, name: str):
    assert display_name(3, source) == name


def test_a_long_path_is_shortened_in_messages():
    name = display_name(3, "a" * 4000 + ".jpg")
    assert len(name) < 220 and name.startswith("3 (aaa") and name.endswith("a.jpg)")
