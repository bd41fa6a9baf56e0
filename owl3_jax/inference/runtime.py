"""Parameters on their devices, and everything that decides how programs are compiled for them."""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Array, Float, Float32, Shaped, UInt8

from owl3_jax.batch import AnyArray
from owl3_jax.config import ComputeConfig, ModelConfig
from owl3_jax.inference import buckets, programs
from owl3_jax.inference.caches import image_bytes
from owl3_jax.inference.clock import Clock
from owl3_jax.inference.feature_cache import FeatureCache, key_of
from owl3_jax.models.hyper import image_token_slots
from owl3_jax.models.owl3 import Owl3
from owl3_jax.params import Params
from owl3_jax.sharding import devices_along, rows_divisor, use_mesh

R = TypeVar("R")

View = UInt8[np.ndarray, "S S 3"] | Float32[np.ndarray, "S S 3"]  # float32 ones are normalised to [-1, 1]

# Bytes of one step of image attention: scores, and the keys and values copied for them. On a CPU they should fit its caches.
_CHUNK_BYTES = {"cpu": 8 * 2**20}
_CHUNK_BYTES_ELSEWHERE = 512 * 2**20
# Tokens of text that are copied out of pages in one step. On a CPU the copies take longer than all else.
_TEXT_PER_CHUNK = {"cpu": 128}

# Bytes of keys and values in one buffer, for one layer and row, where each layer has its own buffers.
_BLOCK_BYTES = 24 * 2**20


@dataclasses.dataclass(frozen=True)
class Runtime:
    """What the programs run with. `run` and `run_model` are the only callers of compiled code."""

    config: ModelConfig
    compute: ComputeConfig
    params: Params
    mesh: Mesh | None = None
    vision_batch_size: int = 8  # images that are encoded together
    feature_cache: FeatureCache = dataclasses.field(default_factory=lambda: FeatureCache(0))
    clock: Clock = dataclasses.field(default_factory=Clock)

    @property
    def devices(self) -> int:
        """Devices that share the caches."""
        return self.mesh.size if self.mesh else 1

    def rows(self, prompts: int) -> int:
        """Rows of a batch of `prompts` prompts."""
        return buckets.rows(prompts, rows_divisor(self.mesh) if self.mesh else 1)

    def image_slots(self, images: int) -> int:
        """Slots of an image cache for `images` images: a bucket that the mesh splits evenly."""
        spread = devices_along("image", self.mesh) if self.mesh else 1
        return -(-buckets.image_slots(images) // spread) * spread

    def image_blocks(self, images: int) -> tuple[int, ...]:
        """The same slots as the blocks of an image cache: one, or several of bounded size where layers are written out."""
        slots = self.image_slots(images)
        if self.compute.scan_layers:
            return (slots,)
        most = self._images_per_block()
        whole, rest = divmod(slots, most)
        return (most,) * whole + ((rest,) if rest or not whole else ())

    def encoder_batch(self, images: int) -> int:
        """The batch size of the vision encoder for `images` images: a power of two, or the full batch."""
        return min(buckets.bucket(images, steps=1), self.vision_batch_size)

    def run(self, program: Callable[..., R], *arguments: object) -> R:
        """Calls a program that needs no parameters."""
        with use_mesh(self.mesh) if self.mesh else contextlib.nullcontext():
            return program(*arguments)

    def run_model(
        self, program: Callable[..., R], *arguments: object, positions: int = 1, rows: int = 1, **options: object
    ) -> R:
        """Calls a program of `owl3_jax.inference.programs` for text of `positions` positions in each of `rows` rows."""
        # Keys and values of a chunk are copied out of a stack of layers, but read in place from separate buffers.
        model = _model(self.config, self.compute, self._images_per_chunk(positions, rows, copies=self.compute.scan_layers))
        return self.run(functools.partial(program, model, self.params, **options), *arguments)

    def run_paged(self, program: Callable[..., R], *arguments: object, positions: int, rows: int) -> R:
        """The same with one of `owl3_jax.inference.paged_programs`: keys and values are copied out of the pages."""
        compute = dataclasses.replace(self.compute, text_per_chunk=_TEXT_PER_CHUNK.get(self.platform))
        model = _model(self.config, compute, self._images_per_chunk(positions, rows, copies=True))
        return self.run(functools.partial(program, model, self.params), *arguments)

    def features(self, views: Sequence[View], size: int) -> Float[Array, "J L E"]:
        """Image features of `views`, padded to J = `size`; images seen before come from the feature cache."""
        cache = self.feature_cache
        if not cache.max_bytes:
            return self._encode(views, size)
        keys = [key_of(view) for view in views]
        cached = {key: cache.get(key) for key in keys}
        found: dict[bytes, AnyArray] = {key: features for key, features in cached.items() if features is not None}
        missing = {key: view for key, view in zip(keys, views, strict=True) if key not in found}
        if missing:
            encoded = self._encode(list(missing.values()), min(size, buckets.bucket(len(missing), steps=1)))
            found |= dict(zip(missing, encoded, strict=False))  # the rest is padding
        for key in missing:
            cache.put(key, found[key])
        return jnp.stack([found[key] for key in keys] + [found[keys[0]]] * (size - len(views)))

    def _encode(self, views: Sequence[View], size: int) -> Float[Array, "J L E"]:
        pixels = np.zeros((size, *views[0].shape), views[0].dtype)
        pixels[: len(views)] = views
        features: Float[Array, "J L E"] = self.run_model(programs.encode, pixels)
        return features

    @property
    def platform(self) -> str:
        """Of the devices that it runs on, which need not be this machine's: `owl3 compile`."""
        name: str = self.mesh.devices.flat[0].platform if self.mesh else jax.default_backend()
        return name

    def _images_per_chunk(self, positions: int, rows: int, *, copies: bool) -> int:
        config, shared = self.config, rows_divisor(self.mesh) if self.mesh else 1
        copied = 2 * config.num_key_value_heads * config.head_dim if copies else 0
        per_token = copied + config.num_attention_heads * positions
        per_image = 4 * per_token * self.run(image_token_slots, config) * max(1, rows // shared)
        return max(1, _CHUNK_BYTES.get(self.platform, _CHUNK_BYTES_ELSEWHERE) // per_image)

    def image_bytes(self, rows: int, slots: int) -> int:
        """Bytes of keys and values of `rows` x `slots` images in all hyper layers, as they are on the mesh."""
        return self.run(functools.partial(image_bytes, self.config, self.compute), rows, slots)

    def _images_per_block(self) -> int:
        """A power of two times the devices that images are spread over."""
        spread = devices_along("image", self.mesh) if self.mesh else 1
        layers = len(self.config.hyper_layers)
        return spread * 2 ** int(math.log2(max(1, _BLOCK_BYTES * layers // self.image_bytes(1, spread))))


def usual_vision_batch(mesh: Mesh | None) -> int:
    """Images that the vision tower takes at once unless somebody says otherwise."""
    return (2 if jax.default_backend() == "cpu" else 8) * (mesh.size if mesh else 1)


def fetch(array: Shaped[Array, "*dims"]) -> Shaped[np.ndarray, "*dims"]:
    """The whole array on this host. One that is spread over the devices of several hosts has to be fetched by all of them."""
    return np.asarray(array) if array.is_fully_addressable else multihost_utils.process_allgather(array, tiled=True)


@functools.cache
def _model(config: ModelConfig, compute: ComputeConfig, images_per_chunk: int) -> Owl3:
    return Owl3(config, dataclasses.replace(compute, images_per_chunk=images_per_chunk))
