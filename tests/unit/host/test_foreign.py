import struct

import av
import pytest

from owl3_jax.host.foreign import foreign_errors


class DamagedFile(ValueError):
    """The class of a format's own error."""


class PluginError(Exception):
    """The class of a library's error."""


@pytest.mark.parametrize(
    ("cause", "reason"),
    [
        (PluginError("no such tile\nat line 3"), "PluginError: no such tile"),
        (AttributeError("'NoneType' object has no attribute 'decode'"), "AttributeError: 'NoneType' object has no attribute"),
        (ValueError("5 bands are too many"), "5 bands are too many"),
        (SyntaxError("not a TIFF file"), "not a TIFF file"),
        (EOFError(), "EOFError"),
        (struct.error("unpack requires 2 bytes"), "error: unpack requires 2 bytes"),
        (MemoryError(), "there is not enough memory"),
        (FileNotFoundError(2, "No such file or directory", "cat.png"), "No such file or directory: cat.png"),
        (OSError(36, "File name too long", "x" * 5000), "File name too long; get it again"),
        (OSError("truncated file"), "truncated file"),
        (av.error.InvalidDataError(-1094995529, "Invalid data found", "a.mp4"), "Invalid data found: a.mp4"),
    ],
)
def test_whatever_a_library_raises_becomes_one_line_that_names_the_file(cause: Exception, reason: str):
    with pytest.raises(DamagedFile) as caught, foreign_errors(DamagedFile, "cannot read cat", "; get it again"):
        raise cause
    message = str(caught.value)
    assert message.startswith(f"cannot read cat: {reason}") and message.endswith("; get it again")
    assert "\n" not in message and len(message) < 200
    assert caught.value.__cause__ is cause


@pytest.mark.parametrize("error", [DamagedFile("named already"), KeyboardInterrupt(), SystemExit(3)])
def test_its_own_error_and_the_users_interrupt_pass(error: BaseException):
    with pytest.raises(type(error)) as caught, foreign_errors(DamagedFile, "cannot read cat"):
        raise error
    assert caught.value is error
