"""Which URLs an allowed domain covers, and which ones are no URL to fetch."""

import pytest
from yarl import URL

from owl3_jax.serving.domains import AllowedDomain, parse_web_url
from owl3_jax.serving.media_refused import MediaRefused


@pytest.mark.parametrize(
    ("domain", "url"),
    [
        ("media.example", "https://media.example/cat.png"),
        ("media.example", "HTTPS://MEDIA.Example:443/cat.png"),
        ("media.example", "https://media.example./cat.png"),
        ("MEDIA.example", "https://media.example/cat.png?at=a:b@c"),
        ("https://media.example", "https://media.example"),
        ("media.example:8443", "https://media.example:8443/"),
        ("http://media.example", "http://media.example/"),
        ("http://media.example:8080", "http://media.example:8080/"),
        ("*.cdn.example", "https://a.cdn.example/"),
        ("*.cdn.example", "https://a.b.cdn.example/"),
        ("bücher.example", "https://xn--bcher-kva.example/"),
        ("xn--bcher-kva.example", "https://BÜCHER.example/"),
        ("media.example", "https://\uff4dedia\u3002example/"),
        ("minio", "https://minio/"),
    ],
)
def test_a_domain_covers_its_own_urls(domain, url):
    assert AllowedDomain.parse(domain).covers(parse_web_url(url))


@pytest.mark.parametrize(
    ("domain", "url"),
    [
        pytest.param("media.example", "http://media.example/", id="without-tls"),
        pytest.param("http://media.example", "https://media.example/", id="with-tls"),
        pytest.param("media.example", "https://media.example:8443/", id="port"),
        pytest.param("media.example", "https://media.example:22/", id="port-of-ssh"),
        pytest.param("media.example:8443", "https://media.example/", id="default-port"),
        pytest.param("media.example", "https://a.media.example/", id="subdomain"),
        pytest.param("media.example", "https://media.example.evil.example/", id="prefix"),
        pytest.param("media.example", "https://evilmedia.example/", id="suffix"),
        pytest.param("*.cdn.example", "https://cdn.example/", id="parent"),
        pytest.param("*.cdn.example", "https://evilcdn.example/", id="suffix-of-wildcard"),
        pytest.param("*.cdn.example", "https://a.cdn.example.evil.example/", id="prefix-of-wildcard"),
        pytest.param("media.example", "https://medi\u0430.example/", id="cyrillic-look-alike"),
        pytest.param("media.example", "https://rnedia.example/", id="latin-look-alike"),
        pytest.param("media.example", "https://127.0.0.1/", id="ipv4"),
        pytest.param("media.example", "https://2130706433/", id="decimal"),
        pytest.param("media.example", "https://0x7f.1/", id="hexadecimal"),
        pytest.param("media.example", "https://0177.0.0.1/", id="octal"),
        pytest.param("media.example", "https://\u2460\u2461\u2466.0.0.1/", id="circled-digits"),
        pytest.param("media.example", "https://evil.example/#@media.example", id="fragment"),
        pytest.param("media.example", "https://evil.example/?@media.example/", id="query"),
        pytest.param("media.example", "https://evil.example?.media.example/", id="query-without-slash"),
    ],
)
def test_a_domain_covers_no_others(domain, url):
    assert not AllowedDomain.parse(domain).covers(parse_web_url(url))


@pytest.mark.parametrize(
    "url",
    [
        pytest.param("", id="empty"),
        pytest.param("https:///cat.png", id="no-host"),
        pytest.param("https:media.example/cat.png", id="no-slashes"),
        pytest.param("https://user@media.example/", id="user"),
        pytest.param("https://user:secret@media.example/", id="password"),
        pytest.param("https://:secret@media.example/", id="password-alone"),
        pytest.param("https://media.example:@evil.example/", id="host-as-user"),
        pytest.param("https://media.example:443@evil.example/", id="port-as-password"),
        pytest.param("https://evil.example\\@media.example/", id="backslash"),
        pytest.param("https://media.example\\.evil.example/", id="backslash-in-host"),
        pytest.param(" https://media.example/", id="leading-space"),
        pytest.param("https://media.example/a b", id="space"),
        pytest.param("https://media.example/\r\nX-Injected: 1", id="new-line"),
        pytest.param("https://me\tdia.example/", id="tab"),
        pytest.param("https://media.example\x00.evil.example/", id="nul"),
        pytest.param("https://media.example/\ud800", id="lone-surrogate"),
        pytest.param("https://media.example%2eevil.example/", id="encoded-dot"),
        pytest.param("https://evil.example%00.media.example/", id="encoded-nul"),
        pytest.param("https://evil.example%2f.media.example/", id="encoded-slash"),
        pytest.param("https://[::1]/", id="ipv6"),
        pytest.param("https://[::ffff:169.254.169.254]/", id="mapped"),
        pytest.param("https://[fe80::1%25eth0]/", id="ipv6-zone"),
        pytest.param("https://[::1/", id="half-a-bracket"),
        pytest.param("https://media.example:99999/", id="port-too-large"),
        pytest.param("https://media.example:port/", id="port-in-letters"),
        pytest.param("https://media..example/", id="empty-label"),
        pytest.param("https://.media.example/", id="leading-dot"),
        pytest.param("https://media.example../", id="two-trailing-dots"),
        pytest.param("https://-media.example/", id="leading-hyphen"),
        pytest.param(f"https://{'a' * 64}.example/", id="long-label"),
        pytest.param(f"https://{'a.' * 130}example/", id="long-host"),
        pytest.param("https://media.example/" + "a" * 8192, id="long"),
        pytest.param("https://media.example\u200d/", id="invisible-joiner"),
    ],
)
def test_what_is_no_url_to_fetch_is_refused(url):
    with pytest.raises(MediaRefused, match="the URL is not one that this server fetches") as raised:
        parse_web_url(url)
    assert raised.value.code == "media_invalid"


@pytest.mark.parametrize("domain", ["media.example", "*.media.example"])
@pytest.mark.parametrize("host", ["evil.example%00.media.example", "evil.example%2f.media.example"])
def test_odd_characters_in_a_host_gain_nothing_from_a_wildcard(domain, host):
    with pytest.raises(MediaRefused):
        AllowedDomain.parse(domain).covers(parse_web_url(f"https://{host}/"))


def test_a_url_is_relative_to_the_one_that_redirects():
    base = URL("https://media.example/a/b.png")
    assert parse_web_url("c.png?x=1#part", base) == URL("https://media.example/a/c.png?x=1")
    assert parse_web_url("//other.example/d.png", base) == URL("https://other.example/d.png")


@pytest.mark.parametrize(
    "text",
    [
        *("", "*", "*.", "*.com", "media.*", "a.*.example", "media..example", "media example"),
        *("media.example/path", "media.example?x", "user@media.example", "media.example:0x50", "media.example:99999"),
        *("ftp://media.example", "https://", "https://http://media.example"),
        *("127.0.0.1", "0x7f.1", "2130706433", "[::1]", "::1", "*.0.0.1"),
    ],
)
def test_what_is_no_domain_cannot_be_allowed(text):
    with pytest.raises(ValueError, match=r"is no domain|is an address|a whole top-level domain"):
        AllowedDomain.parse(text)
