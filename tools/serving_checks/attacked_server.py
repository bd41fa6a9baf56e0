"""`owl3 serve` with a web of its own, for attacks: names below .test lead to this machine, and 127.0.0.77 counts as public.

All else is as it is: which domains are allowed, every check of an address, and each limit.
"""

import functools
import ipaddress
import itertools
import sys
from collections.abc import Sequence

from owl3_jax.cli import serving
from owl3_jax.cli.serve import main
from owl3_jax.serving.addresses import IPAddress, is_public, system_lookup
from owl3_jax.serving.fetch import MediaFetcher

PUBLIC = "127.0.0.77"  # the host of pictures
_PRIVATE = "127.0.0.1"  # the canary
_ADDRESSES = {
    "pictures.test": itertools.repeat([PUBLIC]),
    "inside.rebind.test": itertools.repeat([_PRIVATE]),
    "mixed.rebind.test": itertools.repeat([PUBLIC, _PRIVATE]),
    "six.rebind.test": itertools.repeat(["::ffff:127.0.0.1"]),
    "flip.rebind.test": itertools.cycle([[PUBLIC], [_PRIVATE]]),  # another address at each look
}


def lookup(host: str) -> Sequence[str]:
    """The addresses of a name."""
    return next(_ADDRESSES[host]) if host in _ADDRESSES else system_lookup(host)


def is_allowed(address: IPAddress) -> bool:
    """Whether an address is public here."""
    return address == ipaddress.ip_address(PUBLIC) or is_public(address)


if __name__ == "__main__":
    serving.MediaFetcher = functools.partial(  # type: ignore[assignment,misc]  # the one place where it is made
        MediaFetcher, lookup=lookup, is_allowed_address=is_allowed
    )
    main(sys.argv[1:])
