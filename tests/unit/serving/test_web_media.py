"""Media on the web are fetched from domains that are allowed, at public addresses, in full, in time, and nothing else is."""

import asyncio
import gzip
from pathlib import Path

import pytest

from owl3_jax.serving import web_media
from owl3_jax.serving.budget import Budget
from owl3_jax.serving.errors import ApiError
from owl3_jax.serving.fetch import MediaFetcher
from owl3_jax.serving.media_policy import MediaPolicy
from owl3_jax.serving.media_refused import MediaRefused
from tests.media_host import LIMIT, PICTURE, Answer, Certificate, Host, fetcher, head, lookup, ok, redirect, refused, running


async def fetched(
    certificate: Certificate, answers: dict[str, Answer], url: str = "https://media.example:{port}/", **policy: float
) -> tuple[bytes, Host]:
    """What comes of a URL, and the server that was asked."""
    async with running(answers, certificate) as host, fetcher(host, certificate, **policy) as made:
        return await made.fetch(url.format(port=host.port), "image"), host


async def silence(writer: asyncio.StreamWriter) -> None:
    while not writer.is_closing():
        await asyncio.sleep(0.01)


async def drip(writer: asyncio.StreamWriter) -> None:
    writer.write(head("Content-Type: image/png", "Content-Length: 50000"))
    while not writer.is_closing():
        writer.write(b"p")
        await writer.drain()
        await asyncio.sleep(0.01)


async def drip_headers(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    while not writer.is_closing():
        writer.write(b"p")
        await writer.drain()
        await asyncio.sleep(0.01)


async def endless(writer: asyncio.StreamWriter) -> None:
    writer.write(head("Content-Type: image/png"))
    while not writer.is_closing():
        writer.write(bytes(10_000))
        await writer.drain()


async def endless_error(writer: asyncio.StreamWriter) -> None:
    writer.write(head(status="403 Forbidden"))
    await endless(writer)


async def endless_redirect(writer: asyncio.StreamWriter) -> None:
    writer.write(head("Location: https://evil.example/", status="302 Found"))
    await endless(writer)


async def endless_chunks(writer: asyncio.StreamWriter) -> None:
    writer.write(head("Content-Type: image/png", "Transfer-Encoding: chunked"))
    while not writer.is_closing():
        writer.write(b"3e8\r\n" + bytes(1000) + b"\r\n")
        await writer.drain()


async def continues(writer: asyncio.StreamWriter) -> None:
    while not writer.is_closing():
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await writer.drain()
        await asyncio.sleep(0.01)


GOOD = {
    "with-length": ok(PICTURE, "Content-Type: image/png"),
    "chunked": head("Transfer-Encoding: chunked") + b"%x\r\n%b\r\n0\r\n\r\n" % (len(PICTURE), PICTURE),
    "until-the-end": head("Content-Type: image/png") + PICTURE,
    "http-1.0": b"HTTP/1.0 200 OK\r\n\r\n" + PICTURE,
    "type-with-parameters": ok(PICTURE, "Content-Type: IMAGE/PNG; charset=binary"),
    "any-bytes": ok(PICTURE, "Content-Type: application/octet-stream"),
    "encoded-as-itself": ok(PICTURE, "Content-Encoding: identity"),
}


@pytest.mark.parametrize("answer", GOOD.values(), ids=GOOD)
def test_an_image_comes_as_it_is(certificate, answer):
    content, host = asyncio.run(fetched(certificate, {"/": answer}))
    assert content == PICTURE
    (request,) = host.requests
    assert f"host: media.example:{host.port}" in request
    assert "accept-encoding: identity" in request


@pytest.mark.parametrize(
    "url",
    [
        "HTTPS://MEDIA.Example:{port}/cat.png",
        "https://media.example.:{port}/cat.png#part",
        "https://media\u3002example:{port}/cat.png",
        "https://a.cdn.example:{port}/cat.png",
    ],
)
def test_a_host_is_written_in_several_ways(certificate, url):
    assert asyncio.run(fetched(certificate, {"/cat.png": ok(PICTURE)}, url))[0] == PICTURE


def test_a_url_may_have_no_path_and_letters_that_are_not_ascii(certificate):
    answers: dict[str, Answer] = {"/": ok(b"root"), "/k%C3%A4tzchen.png": ok(PICTURE)}
    assert asyncio.run(fetched(certificate, answers, "https://media.example:{port}"))[0] == b"root"
    assert asyncio.run(fetched(certificate, answers, "https://media.example:{port}/kätzchen.png"))[0] == PICTURE


def test_the_query_of_a_signed_url_arrives_as_it_was_written(certificate):
    path = "/cat.png?X-Signature=a%2Fb%2Bc%3D&e=1~2&r=attachment%3B%20filename%3Dcat"
    content, _ = asyncio.run(fetched(certificate, {path: ok(PICTURE)}, "https://media.example:{port}" + path))
    assert content == PICTURE


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"])
def test_a_redirect_is_followed_to_a_domain_that_is_allowed(certificate, status):
    async def scenario() -> bytes:
        async with running({"/cat.png": ok(PICTURE)}, certificate) as host, fetcher(host, certificate) as made:
            host.answers["/"] = redirect("/there", status)
            host.answers["/there"] = redirect(f"https://other.example:{host.port}/cat.png", status)
            return await made.fetch(f"https://media.example:{host.port}/", "image")

    assert asyncio.run(scenario()) == PICTURE


def test_an_image_of_just_the_limit_comes(certificate):
    content, _ = asyncio.run(fetched(certificate, {"/": ok(PICTURE)}, max_image_bytes=len(PICTURE)))
    assert content == PICTURE


def test_a_fetch_ends_as_soon_as_its_request_holds_too_much(certificate):
    async def scenario() -> str:
        async with running({"/": endless}, certificate) as host, fetcher(host, certificate) as made:
            with Budget("media", bytes_each=50, bytes_all=1000).account("one") as charge, pytest.raises(ApiError) as raised:
                await made.fetch(f"https://media.example:{host.port}/", "image", charge)
            return raised.value.code

    assert asyncio.run(scenario()) == "request_too_large"


def test_a_domain_may_be_allowed_without_tls():
    async def scenario() -> bytes:
        async with running({"/": ok(PICTURE)}) as host:
            policy = MediaPolicy((f"http://media.example:{host.port}",))
            async with MediaFetcher(policy, lookup=lookup, is_allowed_address=lambda address: True) as made:
                return await made.fetch(f"http://media.example:{host.port}/", "image")

    assert asyncio.run(scenario()) == PICTURE


def test_a_redirect_does_not_give_up_tls_even_for_a_domain_that_is_allowed_without(certificate):
    async def scenario() -> int:
        async with running({"/": ok(PICTURE)}) as plain, running({}, certificate) as host:
            host.answers["/"] = redirect(f"http://media.example:{plain.port}/")
            policy = MediaPolicy((f"media.example:{host.port}", f"http://media.example:{plain.port}"))
            context = certificate.for_client()
            async with MediaFetcher(policy, lookup=lookup, is_allowed_address=lambda _: True, ssl_context=context) as made:
                assert await made.fetch(f"http://media.example:{plain.port}/", "image") == PICTURE
                with pytest.raises(MediaRefused, match="redirects to one without https"):
                    await made.fetch(f"https://media.example:{host.port}/", "image")
            return plain.connections

    assert asyncio.run(scenario()) == 1


BAD_ANSWERS: dict[str, tuple[Answer, str]] = {
    "not-found": (head("Content-Length: 4", status="404 Not Found") + b"gone", "media_unreachable"),
    "error": (head("Content-Length: 0", status="500 Error"), "media_unreachable"),
    "error-without-end": (endless_error, "media_unreachable"),
    "no-content": (head(status="204 No Content"), "media_unreachable"),
    "a-part": (head("Content-Length: 1", status="206 Partial Content") + b"p", "media_unreachable"),
    "not-modified": (head(status="304 Not Modified"), "media_unreachable"),
    "switching-protocols": (head("Upgrade: h2c", "Connection: upgrade", status="101 Switching"), "media_unreachable"),
    "html": (ok(b"<html>", "Content-Type: text/html"), "media_invalid"),
    "video-as-image": (ok(PICTURE, "Content-Type: video/mp4"), "media_invalid"),
    "almost-image": (ok(PICTURE, "Content-Type: imagex/png"), "media_invalid"),
    "empty": (ok(b""), "media_invalid"),
    "too-long": (head(f"Content-Length: {LIMIT + 1}"), "media_too_large"),
    "absurdly-long": (head(f"Content-Length: {10**30}"), "media_unreachable"),
    "too-long-without-saying-so": (head() + bytes(LIMIT + 1), "media_too_large"),
    "endless": (endless, "media_too_large"),
    "endless-chunks": (endless_chunks, "media_too_large"),
    "shorter-than-it-says": (head("Content-Length: 5000") + b"pixels", "media_unreachable"),
    "chunks-break-off": (head("Transfer-Encoding: chunked") + b"3e8\r\npix", "media_unreachable"),
    "chunks-of-no-size": (head("Transfer-Encoding: chunked") + b"zz\r\npixels\r\n0\r\n\r\n", "media_unreachable"),
    "negative-length": (head("Content-Length: -1") + b"pixels", "media_unreachable"),
    "length-in-letters": (head("Content-Length: many") + b"pixels", "media_unreachable"),
    "two-lengths": (head("Content-Length: 6", "Content-Length: 7") + b"pixels!", "media_unreachable"),
    "gzip-bomb": (ok(gzip.compress(bytes(10**7)), "Content-Encoding: gzip"), "media_refused"),
    "gzip-twice": (ok(b"pixels", "Content-Encoding: gzip, gzip"), "media_refused"),
    "brotli": (ok(b"pixels", "Content-Encoding: br"), "media_refused"),
    "no-http": (b"SSH-2.0-OpenSSH_9.6\r\n", "media_unreachable"),
    "nothing": (b"", "media_unreachable"),
    "half-a-head": (b"HTTP/1.1 200 OK\r\nContent-Le", "media_unreachable"),
    "long-header": (ok(PICTURE, "X-Long: " + "a" * 100_000), "media_unreachable"),
    "many-headers": (ok(PICTURE, *(f"X-{number}: 1" for number in range(5000))), "media_unreachable"),
    "silence": (silence, "media_timeout"),
    "body-drips": (drip, "media_timeout"),
    "headers-drip": (drip_headers, "media_timeout"),
    "continues-for-ever": (continues, "media_timeout"),
    "redirect-without-location": (head("Content-Length: 0", status="302 Found"), "media_refused"),
    "redirect-without-end": (endless_redirect, "media_refused"),
    "redirect-to-itself": (redirect("/"), "media_refused"),
    "redirect-to-http": (redirect("http://media.example:{port}/cat.png"), "media_refused"),
    "redirect-to-file": (redirect("file:///etc/passwd"), "media_refused"),
    "redirect-to-file-of-a-host": (redirect("file://media.example/etc/passwd"), "media_refused"),
    "redirect-to-data": (redirect("data:image/png;base64,AAAA"), "media_refused"),
    "redirect-to-ftp": (redirect("ftp://media.example/cat.png"), "media_refused"),
    "redirect-to-gopher": (redirect("gopher://media.example:{port}/_GET"), "media_refused"),
    "redirect-to-script": (redirect("javascript:alert(1)"), "media_refused"),
    "redirect-to-metadata": (redirect("https://169.254.169.254/latest/meta-data/"), "media_refused"),
    "redirect-to-metadata-ipv6": (redirect("https://[fd00:ec2::254]/latest/meta-data/"), "media_refused"),
    "redirect-to-loopback": (redirect("https://127.0.0.1:{port}/cat.png"), "media_refused"),
    "redirect-to-localhost": (redirect("https://localhost:{port}/cat.png"), "media_refused"),
    "redirect-to-decimal": (redirect("https://2130706433:{port}/cat.png"), "media_refused"),
    "redirect-without-scheme": (redirect("//evil.example:{port}/cat.png"), "media_refused"),
    "redirect-with-backslashes": (redirect("/\\evil.example/cat.png"), "media_refused"),
    "redirect-to-other-port": (redirect("https://media.example/cat.png"), "media_refused"),
    "redirect-with-user": (redirect("https://a:b@media.example:{port}/cat.png"), "media_refused"),
    "redirect-inside": (redirect("https://inside.example:{port}/cat.png"), "media_refused"),
    "redirect-to-stranger": (redirect("https://stranger.example:{port}/cat.png"), "media_unreachable"),
}


@pytest.mark.parametrize(("answer", "code"), BAD_ANSWERS.values(), ids=BAD_ANSWERS)
def test_an_answer_that_is_no_image_is_refused(certificate, answer, code):
    async def scenario() -> Host:
        timeout = 0.2 if code == "media_timeout" else 60.0
        async with running({"/cat.png": ok(PICTURE)}, certificate) as host, fetcher(host, certificate, timeout=timeout) as made:
            host.answers["/"] = answer.replace(b"{port}", b"%d" % host.port) if isinstance(answer, bytes) else answer
            with pytest.raises(MediaRefused) as raised:
                await made.fetch(f"https://media.example:{host.port}/", "image")
            assert refused(raised) == code
            return host

    host = asyncio.run(scenario())
    assert not any("cat.png" in request for request in host.requests)


@pytest.mark.parametrize(
    ("url", "code"),
    [
        pytest.param("https://evil.example:{port}/", "media_refused", id="domain"),
        pytest.param("https://media.example/", "media_refused", id="port"),
        pytest.param("http://media.example:{port}/", "media_refused", id="without-tls"),
        pytest.param("https://127.0.0.1:{port}/", "media_refused", id="address"),
        pytest.param("https://2130706433:{port}/", "media_refused", id="decimal-address"),
        pytest.param("https://[::ffff:127.0.0.1]:{port}/", "media_invalid", id="mapped-address"),
        pytest.param("https://media.example@evil.example:{port}/", "media_invalid", id="user"),
        pytest.param("https://inside.example:{port}/", "media_refused", id="private-address"),
    ],
)
def test_a_url_that_is_not_allowed_connects_to_nothing(certificate, url, code):
    async def scenario() -> int:
        async with running({"/": ok(PICTURE)}, certificate) as host, fetcher(host, certificate) as made:
            with pytest.raises(MediaRefused) as raised:
                await made.fetch(url.format(port=host.port), "image")
            assert refused(raised, url) == code
            return host.connections

    assert asyncio.run(scenario()) == 0


@pytest.mark.parametrize("address", ["169.254.169.254", "127.0.0.1", "10.1.2.3", "::1", "::ffff:127.0.0.1", "fd00:ec2::254"])
def test_a_domain_at_an_address_that_is_not_public_is_refused_by_default(address):
    async def scenario() -> str:
        async with running({"/": ok(PICTURE)}) as host:
            policy = MediaPolicy((f"http://media.example:{host.port}",))
            async with MediaFetcher(policy, lookup=lambda _: ["8.8.8.8", address]) as made:
                with pytest.raises(MediaRefused) as raised:
                    await made.fetch(f"http://media.example:{host.port}/", "image")
            assert address not in str(raised.value)
            assert host.connections == 0
            return refused(raised)

    assert asyncio.run(scenario()) == "media_refused"


def test_a_name_that_changes_its_address_is_checked_for_each_connection(certificate, monkeypatch):
    monkeypatch.setattr(web_media, "_LOOKUP_SECONDS", -1)
    looked_up: list[str] = []

    def rebinding(host: str) -> list[str]:
        looked_up.append(host)
        return ["127.0.0.1"] if len(looked_up) == 1 else ["127.0.0.2"]

    async def scenario() -> None:
        async with running({}, certificate) as host, fetcher(host, certificate, rebinding) as made:
            host.answers["/"] = redirect(f"https://media.example:{host.port}/cat.png")
            async with running({"/cat.png": ok(b"secret")}, certificate, "127.0.0.2", host.port) as inside:
                with pytest.raises(MediaRefused) as raised:
                    await made.fetch(f"https://media.example:{host.port}/", "image")
                assert refused(raised) == "media_refused"
                assert (host.connections, inside.connections) == (1, 0)

    asyncio.run(scenario())
    assert looked_up == ["media.example", "media.example"]


def test_the_address_that_was_checked_is_the_one_that_is_connected_to(certificate):
    looked_up: list[str] = []

    def rebinding(host: str) -> list[str]:
        looked_up.append(host)
        return ["127.0.0.1"] if len(looked_up) == 1 else ["127.0.0.2"]

    async def scenario() -> bytes:
        async with running({"/": ok(PICTURE)}, certificate) as host, fetcher(host, certificate, rebinding) as made:
            return await made.fetch(f"https://media.example:{host.port}/", "image")

    assert asyncio.run(scenario()) == PICTURE
    assert looked_up == ["media.example"]


@pytest.mark.parametrize("trusted", [True, False])
def test_a_certificate_has_to_be_trusted_and_of_the_host(certificate, tmp_path, trusted):
    known = certificate if trusted else Certificate(tmp_path)

    async def scenario() -> None:
        async with running({"/": ok(PICTURE)}, certificate) as host, fetcher(host, known) as made:
            name = "stranger.example" if trusted else "media.example"
            with pytest.raises(MediaRefused, match="no certificate for its name that is trusted") as raised:
                await made.fetch(f"https://{name}:{host.port}/", "image")
            assert refused(raised) == "media_unreachable"
            assert host.requests == []

    asyncio.run(scenario())


def test_a_host_that_does_not_speak_tls_is_refused(certificate):
    async def scenario() -> None:
        async with running({}) as host, fetcher(host, certificate) as made:
            host.greeting = b"HTTP/1.1 400 Bad Request\r\n\r\n"
            with pytest.raises(MediaRefused) as raised:
                await made.fetch(f"https://media.example:{host.port}/", "image")
            assert refused(raised) == "media_unreachable"

    asyncio.run(scenario())


def test_a_host_that_cannot_be_found_or_reached_is_refused(certificate):
    def unknown(name: str) -> list[str]:
        if name == "other.example":
            raise OSError(-2, "Name or service not known at 10.0.0.53")
        return ["127.0.0.1"]

    async def scenario() -> None:
        async with running({}, certificate) as host:
            port = host.port
        async with fetcher(host, certificate, unknown) as made:
            for name in ("media.example", "other.example"):  # nobody listens at the first one's port any more
                with pytest.raises(MediaRefused, match="cannot be reached") as raised:
                    await made.fetch(f"https://{name}:{port}/", "image")
                assert refused(raised) == "media_unreachable"

    asyncio.run(scenario())


def test_as_many_redirects_as_allowed_are_followed_and_no_more(certificate):
    answers: dict[str, Answer] = {f"/{number}": redirect(f"/{number + 1}") for number in range(10)}
    answers["/3"] = ok(PICTURE)
    content, _ = asyncio.run(fetched(certificate, answers, "https://media.example:{port}/0", max_redirects=3))
    assert content == PICTURE
    for most in (0, 2):
        with pytest.raises(MediaRefused, match=f"more than {most} redirects"):
            asyncio.run(fetched(certificate, answers, "https://media.example:{port}/0", max_redirects=most))


def test_redirects_that_each_take_a_while_are_one_fetch_for_the_timeout(certificate):
    async def slowly(writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.1)
        writer.write(redirect("/"))

    with pytest.raises(MediaRefused) as raised:
        asyncio.run(fetched(certificate, {"/": slowly}, max_redirects=10**6, timeout=0.5))
    assert refused(raised) == "media_timeout"


def test_nothing_is_taken_from_the_environment(certificate, monkeypatch, tmp_path: Path):
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    (tmp_path / "netrc").write_text("machine media.example login user password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    content, host = asyncio.run(fetched(certificate, {"/": ok(PICTURE)}))
    assert content == PICTURE
    assert "authorization" not in host.requests[0]


def test_cookies_are_not_kept(certificate):
    async def scenario() -> list[str]:
        async with running({"/cat.png": ok(PICTURE)}, certificate) as host, fetcher(host, certificate) as made:
            host.answers["/"] = head("Location: /cat.png", "Set-Cookie: a=b; Path=/", "Content-Length: 0", status="302 Found")
            for _ in range(2):
                await made.fetch(f"https://media.example:{host.port}/", "image")
            return host.requests

    requests = asyncio.run(scenario())
    assert len(requests) == 4
    assert not any("cookie:" in request for request in requests)
