from pathlib import Path

import pytest

from owl3_jax.cli.typed_path import typed_path


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("photo.jpg", "photo.jpg"),
        ("my photo.jpg", "my photo.jpg"),
        ('"my photo.jpg"', "my photo.jpg"),
        ("'my photo.jpg'", "my photo.jpg"),
        (r"my\ photo\ \(1\).jpg", "my photo (1).jpg"),
        ("'it'\\''s.jpg'", "it's.jpg"),
        ("it's.jpg", "it's.jpg"),
        ("file:///photos/my%20photo.jpg", "/photos/my photo.jpg"),
        ('"file:///photos/a.jpg"', "/photos/a.jpg"),
        ("~/photo.jpg", str(Path("~/photo.jpg").expanduser())),
        ('"~/my photo.jpg"', str(Path("~/my photo.jpg").expanduser())),
    ],
)
def test_what_a_typed_path_means(text: str, path: str):
    assert typed_path(text) == Path(path)


@pytest.mark.parametrize("name", ['"quoted".jpg', r"back\slash.jpg", "'"])
def test_an_existing_file_is_itself_whatever_its_name(tmp_path: Path, name: str):
    (tmp_path / name).touch()
    assert typed_path(str(tmp_path / name)) == tmp_path / name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("https://example.org/a.jpg", "files on the web are not fetched"),
        ("data:,a", "save it to a file"),
        ("~no_such_user/a.jpg", r"write \./~ for a file"),
    ],
)
def test_what_no_path_can_be(text: str, message: str):
    with pytest.raises(ValueError, match=message):
        typed_path(text)
