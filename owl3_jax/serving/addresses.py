"""Which addresses a server may connect to for a client's sake, and a resolver that gives no others.

A name is looked up once for a connection, which goes to the address that was checked, so a name that has another address the
next moment (DNS rebinding) gains nothing.
"""

import asyncio
import ipaddress
import logging
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv6Address

from aiohttp.abc import AbstractResolver, ResolveResult

IPAddress = IPv4Address | IPv6Address
AddressCheck = Callable[[IPAddress], bool]
Lookup = Callable[[str], Sequence[str]]  # blocks; raises OSError

_LOOKUPS = 32  # at the same time

_SPECIAL_IPV4 = tuple(
    map(
        ipaddress.IPv4Network,
        (
            "192.0.0.0/24",  # protocol assignments: Oracle's metadata server is 192.0.0.192
            "192.88.99.0/24",  # relays to IPv6
            "168.63.129.16/32",  # Azure's host, from its virtual machines
        ),
    )
)
_UNICAST_IPV6 = ipaddress.IPv6Network("2000::/3")  # without the mapped and translated forms of IPv4: ::/96, 64:ff9b::/96
_SPECIAL_IPV6 = tuple(
    map(
        ipaddress.IPv6Network,
        (
            "2001::/23",  # protocol assignments, Teredo among them, which embeds IPv4 addresses
            "2001:db8::/32",  # documentation
            "2002::/16",  # 6to4, which embeds IPv4 addresses
            "3fff::/20",  # documentation
        ),
    )
)

_logger = logging.getLogger(__name__)


class ForbiddenAddressError(OSError):
    """A host has an address that is not to be connected to."""


def is_public(address: IPAddress) -> bool:
    """Whether an address is a host's on the internet, and says so itself.

    Not: private, shared (100.64.0.0/10), loopback, link-local (where clouds have their metadata), multicast, reserved and
    unspecified ones, those with a zone, and IPv6 addresses that stand for an IPv4 address. A network that translates to IPv4
    under a prefix of its own cannot be told from others; there a firewall has to keep the server off.
    """
    if not address.is_global or address.is_multicast:
        return False
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _SPECIAL_IPV4)
    return address.scope_id is None and address in _UNICAST_IPV6 and not any(address in network for network in _SPECIAL_IPV6)


def system_lookup(host: str) -> list[str]:
    """The addresses of a host, as this machine resolves names. Raises OSError."""
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    return [str(address[0]) for *_, address in found]


class CheckedResolver(AbstractResolver):
    """Resolves names for aiohttp, to addresses that pass a check.

    It has threads of its own, so that a name server which does not answer holds up nothing else.
    """

    def __init__(self, lookup: Lookup = system_lookup, is_allowed: AddressCheck = is_public) -> None:
        self._lookup, self._is_allowed = lookup, is_allowed
        self._threads = ThreadPoolExecutor(_LOOKUPS, thread_name_prefix="media-lookup")

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC) -> list[ResolveResult]:
        """The addresses of `host`. Raises ForbiddenAddressError if one of them is not allowed, OSError if it has none."""
        found = await asyncio.get_running_loop().run_in_executor(self._threads, self._lookup, host)
        addresses = [ipaddress.ip_address(text) for text in dict.fromkeys(found)]
        if forbidden := [str(address) for address in addresses if not self._is_allowed(address)]:
            _logger.warning("nothing is fetched from %s, which has the address %s", host, forbidden[0])
            raise ForbiddenAddressError("an address that is not allowed")
        results = [_result(host, address, port) for address in addresses]
        results = [result for result in results if family in (socket.AF_UNSPEC, result["family"])]
        if not results:
            raise OSError("no address")
        return results

    async def close(self) -> None:
        """Waits for no lookup."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _result(host: str, address: IPAddress, port: int) -> ResolveResult:
    return ResolveResult(
        hostname=host,
        host=str(address),
        port=port,
        family=socket.AF_INET if address.version == 4 else socket.AF_INET6,
        proto=socket.IPPROTO_TCP,
        flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
    )
