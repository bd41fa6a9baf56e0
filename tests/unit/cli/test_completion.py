import pytest

from owl3_jax.cli.completion import completions

COMMANDS = ("/image", "/save", "/reset")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", []),
        ("/", ["/image ", "/save ", "/reset"]),
        ("/i", ["/image "]),
        ("/r", ["/reset"]),
        ("What", []),
        ("/reset ", []),
        ("/image ", ["/image a b.jpg", "/image album/"]),
        ("/image a ", ["/image a b.jpg"]),
        ("/image .", ["/image .hidden"]),
        ("/image album/", ["/image album/1.png", "/image album/2.png"]),
        ("/save ./album/2", ["/save ./album/2.png"]),
        ("/save ~/al", ["/save ~/album/"]),
        ("/image nowhere/", []),
        ("/image [a", []),
    ],
)
def test_commands_and_paths_are_completed(tmp_path, monkeypatch, line, expected):
    (tmp_path / "album").mkdir()
    for name in ("a b.jpg", ".hidden", "album/1.png", "album/2.png"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert completions(line, COMMANDS, ("/image", "/save")) == expected
