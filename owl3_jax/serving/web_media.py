"""Media on the web, from domains that are allowed."""

import asyncio
import contextlib
import io
import logging
import ssl
from collections.abc import AsyncIterator

import aiohttp
from yarl import URL

from owl3_jax.serving.addresses import CheckedResolver, ForbiddenAddressError
from owl3_jax.serving.budget import Charge
from owl3_jax.serving.domains import AllowedDomain, parse_web_url
from owl3_jax.serving.media_policy import MediaPolicy
from owl3_jax.serving.media_refused import MediaKind, MediaRefused, require_type, too_large

_REDIRECTS = (301, 302, 303, 307, 308)
_LOOKUP_SECONDS = 10  # that the addresses of a host are kept
_HEADERS = {"User-Agent": "owl3_jax", "Accept-Encoding": "identity"}

_logger = logging.getLogger(__name__)


class WebMedia:
    """Fetches over HTTPS. It is made in a running event loop, and used in that one."""

    def __init__(self, policy: MediaPolicy, resolver: CheckedResolver, ssl_context: ssl.SSLContext | None) -> None:
        """`ssl_context`: which certificates are trusted; by default those that this machine trusts."""
        self._policy, self._resolver = policy, resolver
        self._turns = {
            AllowedDomain.parse(text): asyncio.Semaphore(policy.max_fetches_per_domain) for text in policy.allowed_domains
        }
        self._all_turns = asyncio.Semaphore(policy.max_fetches)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(resolver=resolver, ssl=ssl_context or True, limit=0, ttl_dns_cache=_LOOKUP_SECONDS),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=_HEADERS,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),  # `fetch` has one for all of it
            auto_decompress=False,
            trust_env=False,  # no proxy and no .netrc
        )

    async def fetch(self, text: str, kind: MediaKind, charge: Charge) -> bytes:
        """The medium at a URL. Raises MediaRefused, and what `charge` raises."""
        url = parse_web_url(text)
        domain = self._domain(url)
        if domain is None:
            where = f"{url.scheme}://{url.raw_host}" + ("" if url.is_default_port() else f":{url.port}")
            raise MediaRefused("media_refused", f"this server fetches nothing from {where}; who runs it can allow the domain")
        try:
            async with self._turn(domain, kind), asyncio.timeout(self._policy.timeout):
                return await self._follow(url, kind, charge)
        except MediaRefused:
            raise
        except TimeoutError:
            message = f"the {kind} did not arrive within {self._policy.timeout:g} s"
            raise MediaRefused("media_timeout", message) from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            _logger.info("fetching from %s failed: %s", url.raw_host, type(error).__name__)
            raise _failure(error, kind) from None

    async def close(self) -> None:
        """Ends the connections; what is being fetched fails."""
        await self._session.close()
        await self._resolver.close()

    def _domain(self, url: URL) -> AllowedDomain | None:
        return next((domain for domain in self._turns if domain.covers(url)), None)

    @contextlib.asynccontextmanager
    async def _turn(self, domain: AllowedDomain, kind: MediaKind) -> AsyncIterator[None]:
        """The domain's turns come first: those who wait for a slow host take none of the others'."""
        async with contextlib.AsyncExitStack() as turn:
            try:
                async with asyncio.timeout(self._policy.queue_timeout):
                    for semaphore in (self._turns[domain], self._all_turns):
                        await turn.enter_async_context(semaphore)
            except TimeoutError:
                message = f"the {kind} waited for {self._policy.queue_timeout:g} s behind others that are being fetched"
                raise MediaRefused("media_timeout", message) from None
            yield

    async def _follow(self, url: URL, kind: MediaKind, charge: Charge) -> bytes:
        for _ in range(self._policy.max_redirects + 1):
            async with self._session.get(url, allow_redirects=False) as response:
                if response.status not in _REDIRECTS:
                    return await self._read(response, kind, charge)
                url = self._redirected(url, response.headers.get("Location", ""))
        raise MediaRefused("media_refused", f"the {kind} is behind more than {self._policy.max_redirects} redirects")

    def _redirected(self, url: URL, location: str) -> URL:
        """The URL that `url` redirects to. Messages do not say which: it may be for this server's eyes only."""
        try:
            target = parse_web_url(location, base=url)
        except MediaRefused:
            raise MediaRefused("media_refused", "the URL redirects to what is no https:// URL") from None
        if url.scheme == "https" and target.scheme != "https":
            raise MediaRefused("media_refused", "the URL redirects to one without https")
        if self._domain(target) is None:
            raise MediaRefused("media_refused", "the URL redirects to a host that this server fetches nothing from")
        return target

    async def _read(self, response: aiohttp.ClientResponse, kind: MediaKind, charge: Charge) -> bytes:
        limit = self._policy.max_bytes(kind)
        if response.status != 200:
            message = f"the host of the {kind} answered with status {response.status}"
            raise MediaRefused("media_unreachable", message)
        if response.headers.get("Content-Encoding", "identity").strip().lower() not in ("", "identity"):
            raise MediaRefused("media_refused", f"the host of the {kind} sends it compressed, unasked")
        require_type(response.headers.get("Content-Type", ""), kind)
        if (response.content_length or 0) > limit:
            raise too_large(kind, limit)
        content = io.BytesIO()  # a list of the pieces may be far larger than what they hold
        async for piece in response.content.iter_any():
            content.write(piece)
            charge(len(piece))
            if content.tell() > limit:
                raise too_large(kind, limit)
        return content.getvalue()


def _failure(error: Exception, kind: MediaKind) -> MediaRefused:
    """What the client is told of an error of a library's: nothing that is in it."""
    if isinstance(error, aiohttp.ClientConnectorError) and isinstance(error.os_error, ForbiddenAddressError):
        return MediaRefused("media_refused", f"the host of the {kind} is not at a public address")
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return MediaRefused("media_unreachable", f"the host of the {kind} has no certificate for its name that is trusted")
    if isinstance(error, aiohttp.ClientConnectorError):
        return MediaRefused("media_unreachable", f"the host of the {kind} cannot be reached")
    return MediaRefused("media_unreachable", f"the host of the {kind} broke off, or did not answer in HTTP")
