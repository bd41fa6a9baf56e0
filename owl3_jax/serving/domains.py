"""Web addresses of media, and the domains that a server may fetch them from.

A request's URL and the domains that are allowed go through the same parser, whose result is also what is fetched: no two
readings of one URL can differ.
"""

import dataclasses
import re

from yarl import URL

from owl3_jax.serving.media_refused import MediaRefused

_LONGEST_URL = 8192  # characters
_LONGEST_HOST = 253
_HOST = re.compile(r"(?:(?!-)[a-z0-9_-]{1,63}(?<!-)\.)*(?!-)[a-z0-9_-]{1,63}(?<!-)")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")  # as the last label it makes a host an IPv4 address: 127.1, 0x7f.1, 2130706433
_UNWRITTEN = re.compile(r"[\x00-\x20\x7f\\\ud800-\udfff]")  # what a URL has to percent-encode; parsers differ about it


@dataclasses.dataclass(frozen=True)
class AllowedDomain:
    """Hosts that media are fetched from, over one scheme and at one port."""

    scheme: str  # "https" or "http"
    host: str  # in lower case, IDNA-encoded
    port: int
    subdomains: bool  # whether it means all hosts below `host`, and not that itself

    @classmethod
    def parse(cls, text: str) -> "AllowedDomain":
        """Reads `[https://|http://][*.]host[:port]`: with `*.` hosts below that one, without it that one alone.

        The scheme is https, and the port the scheme's, unless given. Raises ValueError.
        """
        scheme, _, rest = text.lower().rpartition("://")
        scheme, subdomains, name = scheme or "https", rest.startswith("*."), rest.removeprefix("*.")
        try:
            if scheme not in ("https", "http") or re.search(r"[/?#@*]", name):
                raise ValueError
            url = _parse(f"{scheme}://{name}")
        except ValueError:
            raise ValueError(
                f"{text!r} is no domain; write example.com, *.example.com for all hosts below it, example.com:8443 for another"
                " port than 443, or http://example.com to do without TLS"
            ) from None
        host, port = url.raw_host or "", url.port or 0
        if _NUMBER.fullmatch(host.rpartition(".")[2]):
            raise ValueError(f"{text!r} is an address; media are fetched from hosts that have a name")
        if subdomains and "." not in host:
            raise ValueError(f"{text!r} would allow a whole top-level domain; name the domains below it")
        return cls(scheme, host, port, subdomains)

    def covers(self, url: URL) -> bool:
        """Whether `url`, from `parse_web_url`, is at one of these hosts, by this scheme and port."""
        host = url.raw_host or ""
        is_host = host.endswith("." + self.host) if self.subdomains else host == self.host
        return is_host and (url.scheme, url.port) == (self.scheme, self.port)


def parse_web_url(text: str, base: URL | None = None) -> URL:
    """The URL that is fetched for `text`, which may be relative to `base`; its host is in lower case and IDNA-encoded.

    Raises MediaRefused for one that is malformed or has user info.
    """
    try:
        return _parse(text, base)
    except ValueError:
        raise MediaRefused(
            "media_invalid",
            f"the URL is not one that this server fetches: it should be https://host/path with at most {_LONGEST_URL}"
            " characters, without a user's name, and with spaces and other special characters percent-encoded",
        ) from None


def _parse(text: str, base: URL | None = None) -> URL:
    if len(text) > _LONGEST_URL or not text or _UNWRITTEN.search(text):
        raise ValueError("odd characters, or too many")
    url = URL(text, encoded=text.isascii())  # as it is written: a signature may cover it
    url = url if base is None else base.join(url)
    host = (url.raw_host or "").removesuffix(".").lower()
    if not _HOST.fullmatch(host) or len(host) > _LONGEST_HOST:
        raise ValueError("no host name")
    if url.raw_user is not None or url.raw_password is not None:
        raise ValueError("user info")
    return url.with_host(host).with_fragment(None)
