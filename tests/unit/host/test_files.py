from pathlib import Path

import pytest

from owl3_jax.host.files import write_atomically


def test_a_file_is_written_with_its_folder(tmp_path: Path):
    path = write_atomically(tmp_path / "new" / "file.txt", lambda file: file.write(b"text"))
    assert path.read_bytes() == b"text"
    assert [path.name for path in path.parent.iterdir()] == ["file.txt"]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path):
    path = tmp_path / "file.txt"
    path.write_bytes(b"old")

    def fail(file) -> None:
        file.write(b"half of the new te")
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space left"):
        write_atomically(path, fail)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
