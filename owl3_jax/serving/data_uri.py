"""Media that a request holds itself, in `data:` URIs."""

import asyncio
import binascii
import io

from owl3_jax.serving.media_refused import MediaKind, MediaRefused, require_type, too_large

_LONGEST_HEADER = 256  # characters up to the comma
_SLICE = 4 * 65536  # characters that are decoded at a time: some milliseconds


async def decode_data_uri(uri: str, kind: MediaKind, limit: int) -> bytes:
    """What a `data:` URI holds: base64 of at most `limit` bytes, which are counted before they are decoded.

    A long one lets others have their turns meanwhile. Raises MediaRefused.
    """
    comma = uri.find(",", 0, _LONGEST_HEADER)
    header = uri[: max(comma, 0)].lower()
    if not header.startswith("data:") or not header.endswith(";base64"):
        raise MediaRefused("media_invalid", f"the data: URI should begin with data:{kind}/...;base64, and go on with base64")
    require_type(header.removeprefix("data:").removesuffix(";base64"), kind)
    padding = 2 if uri.endswith("==") else int(uri.endswith("="))
    size = (len(uri) - comma - 1) * 3 // 4 - padding
    if size > limit:
        raise too_large(kind, limit)
    content = io.BytesIO()
    try:
        for start in range(comma + 1, len(uri), _SLICE):
            content.write(binascii.a2b_base64(uri[start : start + _SLICE], strict_mode=True))
            await asyncio.sleep(0)
    except ValueError:
        raise _not_base64() from None
    if content.tell() != size:  # some slice but the last one was padded
        raise _not_base64()
    return content.getvalue()


def _not_base64() -> MediaRefused:
    return MediaRefused(
        "media_invalid",
        "what the data: URI holds is not base64: it takes the alphabet with + and /, padding with =, and no white space",
    )
