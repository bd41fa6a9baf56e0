"""How much a server takes on."""

import dataclasses

from owl3_jax.config import ConfigError


@dataclasses.dataclass(frozen=True)
class EngineSettings:
    """Limits of the engine. Raises ConfigError for values that cannot work."""

    max_running: int = 16  # answers that are decoded together
    max_queued: int = 256  # answers that wait for pages or for a place among those; further requests get 429
    queue_gib: float = 8.0  # of pixels of requests that wait or are being read; further ones with images get 429
    max_images: int = 512  # of one request; crops and frames count
    max_model_len: int | None = None  # tokens of one request, prompt and answer; the model's positions by default
    cache_gib: float | None = None  # of both pools of pages, on all devices; by default half of what is free, 4 on a CPU
    host_cache_gib: float = 0.0  # of the host's memory, for images that lose their page
    warm_up: bool = True  # compile all programs before the first request, not with it
    reading_share: float = 0.5  # of the time, for new prompts while answers are under way

    def __post_init__(self) -> None:
        for name in ("max_running", "max_queued", "max_images"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.queue_gib <= 0:
            raise ConfigError(f"queue_gib must be positive, got {self.queue_gib}")
        if self.host_cache_gib < 0:
            raise ConfigError(f"host_cache_gib must not be negative, got {self.host_cache_gib}")
        if not 0 < self.reading_share <= 1:
            raise ConfigError(f"reading_share must be above 0 and at most 1, got {self.reading_share}")
        if (self.max_model_len is not None and self.max_model_len < 1) or (self.cache_gib is not None and self.cache_gib <= 0):
            raise ConfigError(f"max_model_len and cache_gib must be positive, got {self.max_model_len}, {self.cache_gib}")

    def most_tokens(self, positions: int) -> int:
        """Of a prompt and its answer, by a model that has so many positions."""
        return min(self.max_model_len or positions, positions)
