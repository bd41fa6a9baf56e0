"""API keys: who may ask."""

import hashlib
import hmac
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from starlette.datastructures import Headers

from owl3_jax.config import ConfigError
from owl3_jax.serving.errors import ApiError

_KEY = re.compile(r"[!-~]+")  # what a header can carry, without spaces
_BEARER = re.compile(r"bearer +(\S+)", re.IGNORECASE)


class ApiKeys:
    """The keys of a server. Without any, everybody may ask.

    Only digests are kept. A key is compared with all of them, each in constant time, so that the time of an answer tells
    nothing of the keys.
    """

    def __init__(self, keys: Iterable[str] = ()) -> None:
        """Raises ConfigError for a key that no header can carry; it names its number, not the key."""
        listed = list(dict.fromkeys(keys))
        for number, key in enumerate(listed, start=1):
            if not _KEY.fullmatch(key):
                raise ConfigError(f"API key {number} is empty, or has spaces or characters outside ASCII")
        self._digests = [_digest(key.encode("ascii")) for key in listed]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def client_of(self, headers: Headers) -> str | None:
        """A name for the holder of a request's key, `key-1` being the first of the file; None without keys.

        Raises ApiError (401) for a missing or wrong key.
        """
        if not self._digests:
            return None
        given = headers.getlist("authorization")
        found = _BEARER.fullmatch(given[0]) if len(given) == 1 else None
        if found is None:
            raise _unauthorized("give an API key in one header, Authorization: Bearer KEY", "missing_api_key")
        number = _index(_digest(found[1].encode("utf-8")), self._digests)
        if number is None:
            raise _unauthorized("the API key is not one of this server's", "invalid_api_key")
        return f"key-{number + 1}"


def read_keys(path: Path) -> list[str]:
    """The keys in a file: one a line, `#` begins a comment that fills its line.

    Raises ConfigError when there are none, and OSError.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not a text file of API keys") from None
    keys = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not keys:
        raise ConfigError(f"{path} has no API key: write one a line")
    return keys


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _index(digest: bytes, digests: Sequence[bytes]) -> int | None:
    matches = [hmac.compare_digest(digest, other) for other in digests]  # all of them, whichever it is
    return matches.index(True) if any(matches) else None


def _unauthorized(message: str, code: str) -> ApiError:
    return ApiError(401, code, message, headers={"www-authenticate": "Bearer"})
