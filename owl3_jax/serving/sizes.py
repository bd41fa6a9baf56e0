"""How large the pools of pages are."""

import functools

from owl3_jax.inference import buckets
from owl3_jax.inference.caches import image_bytes, text_bytes
from owl3_jax.inference.memory import check_fits, free_bytes
from owl3_jax.inference.paged_programs import pool_compute
from owl3_jax.inference.runtime import Runtime
from owl3_jax.serving.pools import PoolSizes
from owl3_jax.serving.settings import EngineSettings
from owl3_jax.sharding import devices_along

_GIB = 2**30
_TOKENS_PER_PAGE = {"tpu": buckets.TPU_TEXT_PAGE}
_TOKENS_PER_PAGE_ELSEWHERE = 32
_CPU_BYTES = 4 * _GIB  # by default
_MOST_TEXT = 0.5  # of all


def pool_sizes(runtime: Runtime, settings: EngineSettings, max_tokens: int) -> PoolSizes:
    """Text for all running requests at their longest, at most half of the bytes; images in the rest.

    Raises OutOfMemory when the bytes of `settings` are not free.
    """
    platform, compute = runtime.platform, pool_compute(runtime.compute, runtime.platform)
    tokens_per_page = _TOKENS_PER_PAGE.get(platform, _TOKENS_PER_PAGE_ELSEWHERE)
    total = settings.cache_gib * _GIB if settings.cache_gib else _default_bytes(platform, runtime.devices)
    check_fits(int(total), "pools of pages", runtime.devices)
    per_page = runtime.run(functools.partial(text_bytes, runtime.config, compute), 1, tokens_per_page)
    per_image = runtime.run(functools.partial(image_bytes, runtime.config, compute), 1, 1)
    longest = -(-max_tokens // tokens_per_page)
    text_pages = max(1, min(settings.max_running * longest, int(total * _MOST_TEXT / per_page)))
    images = int((total - text_pages * per_page) / per_image)
    over = devices_along("page", runtime.mesh) if runtime.mesh else 1  # the devices that share a pool
    wanted = 4 * settings.max_running * settings.max_images  # more could hardly be of use
    round_up = lambda pages: -(-max(1, pages) // over) * over
    host_bytes = int(settings.host_cache_gib * _GIB)
    return PoolSizes(round_up(text_pages), tokens_per_page, round_up(min(images, wanted)), host_bytes)


def _default_bytes(platform: str, devices: int) -> float:
    free = free_bytes()
    if free is None:
        return float(_CPU_BYTES)
    return min(free / 2, _CPU_BYTES) if platform == "cpu" else free / 2 * devices
