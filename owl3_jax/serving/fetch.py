"""Fetches the media that requests name: from `data:` URIs, and what a policy allows of the web and of local files."""

import asyncio
import re
import ssl
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType

from owl3_jax.serving.addresses import AddressCheck, CheckedResolver, Lookup, is_public, system_lookup
from owl3_jax.serving.budget import Charge, free_of_charge
from owl3_jax.serving.data_uri import decode_data_uri
from owl3_jax.serving.local_media import read_local
from owl3_jax.serving.media_policy import MediaPolicy
from owl3_jax.serving.media_refused import MediaKind, MediaRefused
from owl3_jax.serving.web_media import WebMedia

_READERS = 4  # of files, at the same time
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]{0,19}):", re.IGNORECASE)


class MediaFetcher:
    """Fetches media, safely whatever their URLs are. It is made in a running event loop; an asynchronous context manager.

    Args:
        policy: what may be fetched.
        lookup: how names are resolved.
        is_allowed_address: which addresses may be connected to. Anything wider than the default lets whoever may send a
            request reach this server's own network; it is here for tests, which connect to this machine.
        ssl_context: which certificates are trusted; by default those that this machine trusts.
    """

    def __init__(
        self,
        policy: MediaPolicy,
        *,
        lookup: Lookup = system_lookup,
        is_allowed_address: AddressCheck = is_public,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self._policy = policy
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="media-file")
        resolver = CheckedResolver(lookup, is_allowed_address)
        self._web = WebMedia(policy, resolver, ssl_context) if policy.allowed_domains else None

    async def __aenter__(self) -> "MediaFetcher":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def fetch(self, url: str, kind: MediaKind, charge: Charge = free_of_charge) -> bytes:
        """What is at `url`, as it is: whether it is an image or a video has still to be found out.

        Raises MediaRefused, whose message may be shown to whoever sent the request, and what `charge` raises.
        """
        content = await self._fetch(url, kind, charge)
        if not content:
            raise MediaRefused("media_invalid", f"the {kind} is empty")
        return content

    async def close(self) -> None:
        """Ends what is being fetched; nothing can be fetched any more."""
        self._readers.shutdown(wait=False, cancel_futures=True)
        if self._web:
            await self._web.close()

    async def _fetch(self, url: str, kind: MediaKind, charge: Charge) -> bytes:
        match = _SCHEME.match(url)
        scheme = match[1].lower() if match else ""
        if scheme == "data":
            return _charged(await decode_data_uri(url, kind, self._policy.max_bytes(kind)), charge)
        if scheme == "file":
            return _charged(await self._read(url, kind), charge)
        if scheme in ("https", "http"):
            if self._web is None:
                raise MediaRefused("media_refused", "this server fetches nothing from the web; send the medium as a data: URI")
            return await self._web.fetch(url, kind, charge)
        which = f"one of {scheme}:" if scheme else "none"
        raise MediaRefused("media_invalid", f"the URL of the {kind} should be one of https:, data: or file:; it is {which}")

    async def _read(self, url: str, kind: MediaKind) -> bytes:
        policy = self._policy
        if policy.local_path is None:
            raise MediaRefused("media_refused", "this server reads no files of its own; send the medium as a data: URI")
        limits = policy.local_path, policy.max_bytes(kind)
        try:
            async with asyncio.timeout(policy.timeout):
                return await asyncio.get_running_loop().run_in_executor(self._readers, read_local, url, kind, *limits)
        except TimeoutError:
            raise MediaRefused("media_timeout", f"the {kind} could not be read within {policy.timeout:g} s") from None


def _charged(content: bytes, charge: Charge) -> bytes:
    charge(len(content))
    return content
