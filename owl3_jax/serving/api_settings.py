"""What the HTTP side of a server is told when it starts."""

import dataclasses

from owl3_jax.config import ConfigError
from owl3_jax.inference.sampling import Sampling
from owl3_jax.serving.bodies import BodyLimits


@dataclasses.dataclass(frozen=True)
class ApiSettings:
    """Names, defaults and limits. Raises ConfigError for values that cannot work."""

    models: tuple[str, ...]  # names of the model; answers have the first
    sampling: Sampling  # of what a request does not say; `n` and `num_beams` are 1
    positions: int | None = None  # tokens of the longest prompt with its answer, if known
    max_text_bytes: int | None = None  # of a request's messages: more cannot be so few tokens, if that is known
    max_answers: int = 16  # to one prompt
    max_media: int = 512  # images, frames and videos that a request may name
    max_preparing: int = 64  # requests whose media are fetched and decoded at the same time
    bodies: BodyLimits = dataclasses.field(default_factory=BodyLimits)
    ping: float = 15.0  # seconds after which a stream that has nothing to say says that
    allowed_hosts: tuple[str, ...] = ()  # names that browsers may know this server by; none: any

    def __post_init__(self) -> None:
        if not self.models or not all(self.models):
            raise ConfigError("the model needs a name")
        if self.sampling.n != 1 or self.sampling.num_beams != 1:
            raise ConfigError(
                "a server answers without beams, and requests say how many answers they want: n and num_beams are 1"
            )
        for name in ("max_answers", "max_media", "max_preparing", "ping"):
            if not (value := getattr(self, name)) > 0:
                raise ConfigError(f"{name} must be above 0, got {value}")
