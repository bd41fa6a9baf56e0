"""Only addresses of hosts on the internet are connected to, and only those that were checked."""

import asyncio
import ipaddress
import socket
import threading

import pytest

from owl3_jax.serving.addresses import CheckedResolver, ForbiddenAddressError, is_public, system_lookup

FORBIDDEN = {
    "loopback": "127.0.0.1",
    "loopback-elsewhere": "127.255.255.254",
    "unspecified": "0.0.0.0",
    "this-network": "0.1.2.3",
    "private-10": "10.0.0.1",
    "private-172": "172.16.0.1",
    "private-192": "192.168.1.1",
    "shared": "100.64.0.1",
    "metadata": "169.254.169.254",
    "metadata-of-containers": "169.254.170.2",
    "metadata-of-alibaba": "100.100.100.200",
    "metadata-of-oracle": "192.0.0.192",
    "host-of-azure": "168.63.129.16",
    "relay-to-ipv6": "192.88.99.1",
    "benchmarking": "198.18.0.1",
    "documentation": "203.0.113.7",
    "multicast": "224.0.0.1",
    "multicast-global": "233.252.0.1",
    "reserved": "240.0.0.1",
    "broadcast": "255.255.255.255",
    "ipv6-loopback": "::1",
    "ipv6-unspecified": "::",
    "ipv6-private": "fd12:3456::1",
    "ipv6-metadata": "fd00:ec2::254",
    "ipv6-metadata-of-google": "fd20:ce::254",
    "ipv6-link-local": "fe80::1",
    "ipv6-link-local-zone": "fe80::1%eth0",
    "ipv6-public-zone": "2606:4700::1111%eth0",
    "ipv6-site-local": "fec0::1",
    "ipv6-multicast": "ff02::1",
    "ipv6-multicast-global": "ff0e::1",
    "ipv6-documentation": "2001:db8::1",
    "ipv6-documentation-of-2024": "3fff::1",
    "ipv6-discard": "100::1",
    "ipv6-unassigned": "4000::1",
    "ipv6-segment-routing": "5f00::1",
    "mapped-loopback": "::ffff:127.0.0.1",
    "mapped-metadata": "::ffff:169.254.169.254",
    "mapped-public": "::ffff:8.8.8.8",
    "compatible-loopback": "::127.0.0.1",
    "translated-private": "64:ff9b::10.0.0.1",
    "translated-locally": "64:ff9b:1::10.0.0.1",
    "6to4-private": "2002:0a00:0001::1",
    "6to4-metadata": "2002:a9fe:a9fe::1",
    "teredo": "2001:0:4136:e378:8000:63bf:3fff:fdd2",
}


@pytest.mark.parametrize("address", FORBIDDEN.values(), ids=FORBIDDEN)
def test_an_address_that_is_not_public_is_forbidden(address):
    assert not is_public(ipaddress.ip_address(address))
    with pytest.raises(ForbiddenAddressError):
        asyncio.run(_resolve([address]))


@pytest.mark.parametrize("address", ["8.8.8.8", "172.32.0.1", "100.128.0.1", "2606:4700:4700::1111", "2a00:1450:4001::200e"])
def test_an_address_on_the_internet_is_allowed(address):
    assert is_public(ipaddress.ip_address(address))
    (result,) = asyncio.run(_resolve([address]))
    assert (result["hostname"], result["host"], result["port"]) == ("media.example", address, 443)
    assert result["family"] == (socket.AF_INET6 if ":" in address else socket.AF_INET)
    assert result["flags"] & socket.AI_NUMERICHOST


def test_one_forbidden_address_among_others_forbids_the_host():
    with pytest.raises(ForbiddenAddressError) as raised:
        asyncio.run(_resolve(["8.8.8.8", "10.0.0.1"]))
    assert "10.0.0.1" not in str(raised.value)


def test_a_host_without_an_address_is_an_error():
    with pytest.raises(OSError, match="no address"):
        asyncio.run(_resolve([]))


def test_each_address_is_tried_once():
    assert len(asyncio.run(_resolve(["8.8.8.8", "8.8.4.4", "8.8.8.8"]))) == 2


def test_addresses_of_another_family_are_left_out():
    results = asyncio.run(_resolve(["8.8.8.8", "2606:4700:4700::1111"], socket.AF_INET6))
    assert [result["host"] for result in results] == ["2606:4700:4700::1111"]


def test_this_machine_resolves_its_own_name():
    assert {ipaddress.ip_address(address).is_loopback for address in system_lookup("localhost")} == {True}


def test_a_lookup_that_hangs_holds_up_no_other_and_no_end():
    answer = threading.Event()

    def lookup(host: str) -> list[str]:
        if host == "slow.example":
            answer.wait()
        return ["8.8.8.8"]

    async def scenario() -> str:
        resolver = CheckedResolver(lookup)
        slow = asyncio.create_task(resolver.resolve("slow.example", 443))
        await asyncio.sleep(0)
        (quick,) = await resolver.resolve("media.example", 443)
        assert not slow.done()
        await resolver.close()
        answer.set()
        await slow
        return quick["host"]

    assert asyncio.run(scenario()) == "8.8.8.8"


async def _resolve(addresses: list[str], family: socket.AddressFamily = socket.AF_UNSPEC) -> list:
    resolver = CheckedResolver(lambda host: addresses)
    try:
        return await resolver.resolve("media.example", 443, family)
    finally:
        await resolver.close()
