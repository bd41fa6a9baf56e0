"""What one request may cost where it is decoded, and how a request is told that it may not. No jax: workers import this."""

import dataclasses
import resource
from pathlib import Path
from typing import Literal, get_args

from owl3_jax.processing.images import MAX_PIXELS

RefusalCode = Literal[
    "invalid_messages",
    "too_many_images",
    "too_many_frames",
    "image_too_large",
    "unreadable_image",
    "unreadable_video",
    "decode_timeout",
    "decoder_died",
    "decoder_unavailable",  # the server's fault: no worker starts, or it is stopping
]
REFUSAL_CODES: tuple[RefusalCode, ...] = get_args(RefusalCode)


@dataclasses.dataclass(frozen=True)
class DecodeLimits:
    """For each request, and for the process that decodes it. Raises ValueError for one that is not positive."""

    max_images: int = 128  # views of a request: images, their crops, and frames
    max_pixels: int = MAX_PIXELS  # of an image or of a video's frame, by its header
    max_frames: int = 128  # of a video: fewer are chosen from a file or a folder, a longer list is refused
    # What a worker may allocate, the request's bytes among it. It is RLIMIT_DATA: private memory that can be written, which
    # is what decoders ask for. RLIMIT_AS would count libraries, and address space that malloc and threads only reserve.
    max_bytes_of_memory: int = 2 << 30
    timeout: float = 60.0  # seconds from the moment when a worker gets the request

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if not (value := getattr(self, field.name)) > 0:
                raise ValueError(f"{field.name} must be positive, got {value}")


class DecodeRefused(ValueError):
    """A request that is not decoded. The message is for the client: it names no address, no path and no library's words."""

    def __init__(self, code: RefusalCode, message: str) -> None:
        super().__init__(message)
        self.code = code


def allocated_bytes(process: int | str = "self") -> int:
    """What counts for a process's RLIMIT_DATA; 0 where the system does not say, or the process has ended."""
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[5]) * resource.getpagesize()
    except (OSError, IndexError):
        return 0
