"""Which names browsers may know a server by.

A page of another site can have its own name point to this machine, and then speak to the server as if it were its own. Its
requests still say the name.
"""

import urllib.parse
from collections.abc import Sequence

from owl3_jax.serving.errors import ApiError

LOOPBACK = ("localhost", "127.0.0.1", "::1")


def check_host(header: str, allowed: Sequence[str]) -> None:
    """Raises ApiError unless the Host header says one of these names, with whatever port; any will do if there are none."""
    if allowed and _hostname(header) not in allowed:
        message = "the server does not go by this name; start it with --allowed-hosts to add one"
        raise ApiError(403, "host_not_allowed", message)


def _hostname(header: str) -> str | None:
    try:
        return urllib.parse.urlsplit(f"//{header}").hostname
    except ValueError:
        return None
