"""What a server may fetch of the media that requests name, and how much of it."""

import dataclasses
from pathlib import Path

from owl3_jax.serving.domains import AllowedDomain
from owl3_jax.serving.media_refused import MediaKind

_MIB = 1024 * 1024


@dataclasses.dataclass(frozen=True)
class MediaPolicy:
    """What may be fetched. By default what a request holds itself, in `data:` URIs, and nothing else.

    Raises ValueError for a value that makes no sense.
    """

    allowed_domains: tuple[str, ...] = ()  # in the form of `AllowedDomain.parse`
    local_path: Path | None = None  # the folder that file:// URIs may name files below
    max_image_bytes: int = 32 * _MIB
    max_video_bytes: int = 256 * _MIB
    timeout: float = 20.0  # seconds for one medium, from looking up its host to its last byte, redirects included
    queue_timeout: float = 60.0  # seconds that one may wait until its turn comes
    max_redirects: int = 3
    max_fetches: int = 32  # at the same time, from the web
    max_fetches_per_domain: int = 8  # of those that start at one entry of `allowed_domains`

    def __post_init__(self) -> None:
        """Checks the values."""
        for domain in self.allowed_domains:
            AllowedDomain.parse(domain)
        if self.local_path is not None and not self.local_path.is_dir():
            raise ValueError(f"{str(self.local_path)!r} is no folder, so no media can be below it")
        for name in ("max_image_bytes", "max_video_bytes", "timeout", "queue_timeout", "max_fetches", "max_fetches_per_domain"):
            if not (value := getattr(self, name)) > 0:
                raise ValueError(f"`{name}` should be above 0, got {value}")
        if self.max_redirects < 0:
            raise ValueError(f"`max_redirects` should be 0 or more, got {self.max_redirects}")

    def max_bytes(self, kind: MediaKind) -> int:
        """Of one medium."""
        return self.max_image_bytes if kind == "image" else self.max_video_bytes
