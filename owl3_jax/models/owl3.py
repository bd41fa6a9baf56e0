"""mPLUG-Owl3: vision encoder, projector and hyper-attention decoder, from pixels and tokens to logits."""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, Shaped

from owl3_jax.attention.pages import Pages
from owl3_jax.batch import Batch
from owl3_jax.config import ComputeConfig, ModelConfig
from owl3_jax.models.hyper import ImageCache
from owl3_jax.models.projector import Projector
from owl3_jax.models.qwen2 import Images, PagedContext, Qwen2, Text, TextCache
from owl3_jax.models.siglip import Siglip
from owl3_jax.nn.padding import pad_to_multiple
from owl3_jax.nn.vision_batch import from_vision_batch, to_vision_batch
from owl3_jax.params import Params
from owl3_jax.sharding import constrain, devices_along


class Outputs(NamedTuple):
    """What a forward pass returns."""

    logits: Float[Array, "B T V"]  # float32
    image_features: Float[Array, "B I L E"]  # after the projector
    hidden_states: Float[Array, "N1 B T E"] | None  # with collect_hidden_states: embedding, layers, the last normed


class Owl3(nn.Module):
    """The whole model in any of its three forms; submodules carry the official names.

    `collect_hidden_states` adds the hidden states of every layer to the outputs, for parity checks.
    """

    config: ModelConfig
    compute: ComputeConfig
    collect_hidden_states: bool = False

    def setup(self) -> None:
        floats = self.compute.without_quantization()
        self.vision_model = Siglip(self.config.vision, floats)
        self.vision2text_model = Projector(self.config, floats)
        self.language_model = Qwen2(self.config, self.compute, self.collect_hidden_states)

    def __call__(self, batch: Batch) -> Outputs:
        x, features, hidden_states = self._forward(batch)
        return Outputs(self.language_model.logits(x), features, hidden_states)

    def last_hidden_state(self, batch: Batch) -> Float[Array, "B T E"]:
        """What `logits` takes, after the final norm: training never holds the logits of a whole batch."""
        return self._forward(batch)[0]

    def _forward(self, batch: Batch) -> tuple[Float[Array, "B T E"], Float[Array, "B I L E"], Float[Array, "N1 B T E"] | None]:
        """Hidden states after the final norm, image features, and the hidden states of all layers if they are collected."""
        batch = jax.tree.map(jnp.asarray, batch)  # from numpy
        I = batch.pixels.shape[1]
        batch = _spread_images(batch)
        features = self.encode_images(batch.pixels)
        cache = self.image_cache(features, batch.image_positions)
        images = Images((cache,), batch.image_positions, batch.image_segment_ids)
        x, _, hidden_states = self.language_model(text_of(batch), images)
        return x, features[:, :I], hidden_states

    def encode_images(self, pixels: Shaped[Array, "B I S S 3"]) -> Float[Array, "B I L E"]:
        """Image features: SigLIP's penultimate block, projected to the decoder's width."""
        B, I = pixels.shape[:2]
        with jax.named_scope("siglip"):
            tokens = self.vision_model(to_vision_batch(pixels))
        with jax.named_scope("projector"):
            features = from_vision_batch(self.vision2text_model(tokens), B, I)
        return constrain(features, ("batch", "image", "image_token", "act_embed"))

    def image_cache(self, features: Float[Array, "B I L E"], positions: Int[Array, "B I"]) -> ImageCache:
        """Keys and values of images in every hyper layer: all that the decoder ever reads of them."""
        with jax.named_scope("image_cache"):
            return self.language_model.image_cache(features, positions)

    def extend(
        self, text: Text, images: Images, cache: TextCache, past: TextCache | None = None
    ) -> tuple[Float[Array, "B T E"], TextCache]:
        """Hidden states of further text, and the cache with it: no vision weight and no `v_kv_proj` is read.

        `past` is the text before that of the cache; it is only read. It and `images` may have fewer rows than the text: B / n
        rows, each shared by n successive rows of text.
        """
        x, extended, _ = self.language_model(text, images, cache, past)
        return x, cache if extended is None else extended  # a cache that was given comes back

    def extend_pages(self, text: Text, context: PagedContext) -> tuple[Float[Array, "B T E"], Pages]:
        """As `extend`, where rows share what they follow by page."""
        x, pages = self.language_model.extend_pages(text, context)
        return x, pages

    def logits(self, x: Float[Array, "B T E"]) -> Float[Array, "B T V"]:
        """The head alone, for chosen positions of hidden states."""
        return self.language_model.logits(x)

    def padded_logits(self, x: Float[Array, "B T E"]) -> Float[Array, "B T Vp"]:
        """As `logits`, with -inf in the columns that pad the vocabulary for sharding: for reductions over the vocabulary."""
        return self.language_model.padded_logits(x)


def _spread_images(batch: Batch) -> Batch:
    """Pads the images of each row to a multiple of the devices that they are split over."""
    fields = ("pixels", "image_positions", "image_segment_ids")
    return batch._replace(**{name: pad_to_multiple(getattr(batch, name), 1, devices_along("image")) for name in fields})


# Any: flax types all methods alike
def apply(model: Owl3, params: Params, method: str, *arguments: Any, dropout: Key[Array, ""] | None = None) -> Any:
    """What a method of the model returns with these parameters; `dropout` is the key that drops inputs of LoRA's adapters."""
    return model.apply({"params": params}, *arguments, method=method, rngs=None if dropout is None else {"dropout": dropout})


def text_of(batch: Batch) -> Text:
    """The text part of a batch."""
    return Text(batch.tokens, batch.positions, batch.segment_ids)


def initial_params(config: ModelConfig, compute: ComputeConfig, key: Key[Array, ""]) -> Params:
    """Fresh parameters with logical axis names attached (`nn.unbox` takes them off); to be traced."""
    side, ids = config.vision.image_size, jnp.zeros((1, 1), jnp.int32)
    batch = Batch(ids, ids, ids, jnp.zeros((1, 1, side, side, 3), jnp.uint8), ids, ids)  # no parameter depends on T or I
    params: Params = Owl3(config, compute).init(key, batch)["params"]
    return params


def abstract_params(config: ModelConfig, compute: ComputeConfig) -> Params:
    """Shape and dtype of every parameter, with logical axis names attached; nothing is allocated."""
    params: Params = jax.tree.map(lambda x: x, _traced_params(config, compute))  # dicts of its own
    return params


@functools.lru_cache(maxsize=32)
def _traced_params(config: ModelConfig, compute: ComputeConfig) -> Params:
    params: Params = jax.eval_shape(lambda: initial_params(config, compute, jax.random.key(0)))
    return params
