"""The flags of `owl3 serve`."""

import dataclasses
import ipaddress
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import tyro

from owl3_jax.cli.model_flags import ModelFlags
from owl3_jax.config import ConfigError
from owl3_jax.serving.settings import EngineSettings

_Repeated = tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]]


@dataclasses.dataclass(frozen=True)
class Flags:
    """Answers many users at once, by OpenAI's API and on a page. Requests that leave the sampling options out get these."""

    model: Annotated[ModelFlags, tyro.conf.arg(name="")]
    engine: Annotated[EngineSettings, tyro.conf.arg(name="")] = dataclasses.field(default_factory=EngineSettings)
    port: int = 8000  # 0: any that is free
    host: str = "127.0.0.1"  # address to listen at; the default can be reached from this machine alone
    api_key_file: Path | None = None  # keys, one a line; the variable OWL3_API_KEY adds one
    served_model_name: _Repeated = ()  # names of the model in requests; by default its directory's
    allowed_hosts: _Repeated = ()  # names that browsers may know this server by; by default any if it has keys
    allowed_media_domains: _Repeated = ()  # where images and videos may be fetched from, over https; none by default
    allowed_local_media_path: Path | None = None  # folder that file:// URIs may name files below; none by default
    max_pixels: int = 89_478_485  # most pixels of an image or a frame
    max_body_mib: int = 64  # most MiB of a request
    decode_workers: int = 2  # processes that decode images and videos
    drain_seconds: float = 30.0  # after SIGTERM, for answers under way

    def __post_init__(self) -> None:
        for name in ("max_pixels", "max_body_mib", "decode_workers"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.port < 2**16:
            raise ConfigError(f"--port must be from 0 to 65535, got {self.port}")
        if self.drain_seconds < 0:
            raise ConfigError(f"--drain-seconds must not be negative, got {self.drain_seconds}")

    @property
    def is_local(self) -> bool:
        """Whether only this machine can connect."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


def listed(values: Sequence[Sequence[str]]) -> Iterator[str]:
    """The items of a flag that may be repeated, and may list several, with spaces or commas."""
    for value in itertools.chain(*values):
        yield from filter(None, map(str.strip, value.split(",")))
