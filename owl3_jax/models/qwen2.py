"""The decoder: Qwen2 with hyper attention in a few layers (official name `language_model`).

All layers run as one scan over stacked parameters, [N, ...], so that they are compiled once; a layer
that is a hyper layer takes the other branch of a condition inside that one body. With `scan_layers` off
they are written out, each with its own parameters (`unstack_layers`): a scan has to copy every layer's
weights out of the stack, which takes half the time of a decoding step on a CPU.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen import initializers
from jaxtyping import Array, Float, Int

from owl3_jax.attention.attend import attend
from owl3_jax.attention.inputs import TEXT, KeyBlock, Plan, as_images, one_layer
from owl3_jax.attention.page_placement import write_tokens
from owl3_jax.attention.pages import PagedKeys, Pages, PageTable
from owl3_jax.attention.parts import Part, merge
from owl3_jax.attention.visibility import Visibility, visibility
from owl3_jax.config import ComputeConfig, ModelConfig
from owl3_jax.models.hyper import Fusion, HyperLayers, ImageCache, hyper_attention, hyper_or_plain
from owl3_jax.nn.linear import Linear, declare, declare_scale
from owl3_jax.nn.norms import RMSNorm, rms_norm
from owl3_jax.nn.quantized import Vectors, dequantize, quantize_like, rescale, zero_vectors
from owl3_jax.nn.remat import block_input, rematerialized
from owl3_jax.nn.rope import rope, turns_back
from owl3_jax.nn.stacks import Layer, Stack, as_one_stack, select_layer
from owl3_jax.params import Params
from owl3_jax.sharding import constrain

_HIDDEN = ("batch", "text", "act_embed")  # logical names of [B, T, E]


class TextCache(NamedTuple):
    """Rotated keys and values of text. Slots up to `length` are written; segment 0 is padding."""

    keys: Stack  # [N, B, K, C, D]
    values: Stack
    positions: Int[Array, "B C"]
    segment_ids: Int[Array, "B C"]
    length: Int[Array, ""]

    @classmethod
    def empty(cls, config: ModelConfig, compute: ComputeConfig, rows: int, slots: int) -> "TextCache":
        """A cache of B = `rows` rows and C = `slots` slots, all layers in one stack."""
        shape = (config.num_hidden_layers, rows, config.num_key_value_heads, slots, config.head_dim)
        zeros = zero_vectors(shape, compute)
        ids = jnp.zeros((rows, slots), jnp.int32)
        return cls(zeros, zeros, ids, ids, jnp.zeros((), jnp.int32))

    def with_ids(self, positions: Int[Array, "B T"], segment_ids: Int[Array, "B T"]) -> "TextCache":
        """Appends T new positions, whose keys and values the layers will write."""
        write = lambda old, new: jax.lax.dynamic_update_slice(old, new, (0, self.length))
        return self._replace(positions=write(self.positions, positions), segment_ids=write(self.segment_ids, segment_ids))


class Text(NamedTuple):
    """The text part of a batch."""

    tokens: Int[Array, "B T"]
    positions: Int[Array, "B T"]
    segment_ids: Int[Array, "B T"]


class Images(NamedTuple):
    """Images as the decoder takes them."""

    blocks: tuple[ImageCache, ...]  # of I images together, in order
    positions: Int[Array, "B I"]
    segment_ids: Int[Array, "B I"]


class PageSlots(NamedTuple):
    """Where the keys and values of new text are written. A page outside the pool marks padding, which is not."""

    pages: Int[Array, "B T"]
    slots: Int[Array, "B T"]  # within the page


class PagedContext(NamedTuple):
    """What rows of text follow, in pools that they share."""

    text: Pages  # [N, P, K, L, D]
    text_table: PageTable  # the tokens before the new ones
    slots: PageSlots
    images: Pages  # [M, P', K, L', D]
    image_table: PageTable
    image_positions: Int[Array, "B I"]  # of the placeholders' first tokens


class Carry(NamedTuple):
    """What one decoder layer hands to the next."""

    x: Float[Array, "B T E"]
    cache: tuple[Vectors, Vectors] | None = None  # keys and values of the text cache [N, B, K, C, D], or of all its pages
    images: tuple[ImageCache, ...] = ()  # those of `Fusion`, for their gradients: see `models.hyper.hyper_or_plain`


class Past(NamedTuple):
    """Text before that of the cache. Layers only read it."""

    cache: TextCache
    visible: Visibility  # of the cache's rows, as in `Fusion`


class PagedPast(NamedTuple):
    """Text before the new one in the pages of `Carry.cache`, to which layers write the new one's keys and values."""

    table: PageTable
    visible: Visibility
    slots: PageSlots


class LayerInputs(NamedTuple):
    """What all decoder layers read."""

    positions: Int[Array, "B T"]
    visible: Visibility  # over the text
    cache_length: Int[Array, ""] | None  # first free slot of the text cache
    fusion: Fusion
    past: Past | PagedPast | None = None


class MLP(nn.Module):
    """SwiGLU."""

    config: ModelConfig
    compute: ComputeConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B T E"]) -> Float[Array, "B T E"]:
        E, F = self.config.hidden_size, self.config.intermediate_size
        gate = Linear("bte,ef->btf", (E, F), ("embed", "mlp"), self.compute, use_bias=False, name="gate_proj")(x)
        up = Linear("bte,ef->btf", (E, F), ("embed", "mlp"), self.compute, use_bias=False, name="up_proj")(x)
        hidden = constrain(_swiglu(gate, up), ("batch", "text", "act_mlp"))
        return Linear("btf,fe->bte", (F, E), ("mlp", "embed"), self.compute, use_bias=False, name="down_proj")(hidden)


@jax.custom_vjp
def _swiglu(gate: Float[Array, "B T F"], up: Float[Array, "B T F"]) -> Float[Array, "B T F"]:
    """silu(gate) * up, whose gradients TPUs' compiler would compute again for each tile of the products that read them."""
    return _silu_times(gate, up)


def _silu_times(gate: Float[Array, "B T F"], up: Float[Array, "B T F"]) -> Float[Array, "B T F"]:
    return jax.nn.silu(gate) * up


def _swiglu_forward(gate: Array, up: Array) -> tuple[Array, tuple[Array, Array]]:
    return _silu_times(gate, up), (gate, up)


def _swiglu_backward(inputs: tuple[Array, Array], d_hidden: Array) -> tuple[Array, Array]:
    _, pull_back = jax.vjp(_silu_times, *inputs)
    gradients: tuple[Array, Array] = jax.lax.optimization_barrier(pull_back(d_hidden))
    return gradients


_swiglu.defvjp(_swiglu_forward, _swiglu_backward)


class Attention(nn.Module):
    """Causal grouped-query self-attention, fused with image attention in a hyper layer."""

    config: ModelConfig
    compute: ComputeConfig

    def setup(self) -> None:
        config, D = self.config, self.config.head_dim
        E, H, K = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
        self.q_proj = Linear("bte,ehd->bhtd", (E, H, D), ("embed", "heads", "head_dim"), self.compute)
        self.k_proj = Linear("bte,ekd->bktd", (E, K, D), ("embed", "kv_heads", "head_dim"), self.compute)
        self.v_proj = Linear("bte,ekd->bktd", (E, K, D), ("embed", "kv_heads", "head_dim"), self.compute)
        self.o_proj = Linear("bhtd,hde->bte", (H, D, E), ("heads", "head_dim", "embed"), self.compute, use_bias=False)

    def __call__(
        self,
        x: Float[Array, "B T E"],
        carry: Carry,
        layer: Layer,
        hyper_layer: Layer,
        inputs: LayerInputs,
    ) -> tuple[Float[Array, "B T E"], Carry]:
        positions, theta = inputs.positions[:, None], self.config.rope_theta  # [B, 1, T]: the same for all heads
        q, k, v = rope(self.q_proj(x), positions, theta), rope(self.k_proj(x), positions, theta), self.v_proj(x)
        q = constrain(q, ("batch", "act_heads", "text", "head_dim"))
        if carry.cache is not None and isinstance(inputs.past, PagedPast):
            put = functools.partial(_write_pages, layer=layer, to=inputs.past.slots)
            (keys, k), (values, v) = put(carry.cache[0], k), put(carry.cache[1], v)
            carry = carry._replace(cache=(keys, values))
        elif carry.cache is not None and inputs.cache_length is not None:
            write = functools.partial(_write_layer, layer=layer, slot=inputs.cache_length)
            cache = write(carry.cache[0], k), write(carry.cache[1], v)
            carry = carry._replace(cache=cache)
            k, v = (dequantize(jax.tree.map(lambda x: x[layer], vectors), q.dtype) for vectors in cache)
        part = attend(q, [one_layer(k, v)], inputs.visible, Plan(TEXT, self.compute.attention))
        if isinstance(inputs.past, PagedPast) and carry.cache is not None:
            paged = PagedKeys(Pages(*carry.cache), inputs.past.table, None)
            part = self._merge_past(layer, q, part, paged, inputs.past.visible)
        elif isinstance(inputs.past, Past):
            (keys, row), (values, _) = (select_layer(x, layer) for x in (inputs.past.cache.keys, inputs.past.cache.values))
            part = self._merge_past(row, q, part, [(as_images(keys), as_images(values))], inputs.past.visible)
        image_tokens = self.config.vision.tokens_per_image
        with jax.named_scope("hyper_attention"):
            if isinstance(hyper_layer, int):  # written out: known while tracing
                fuse = functools.partial(hyper_attention, compute=self.compute, image_tokens=image_tokens)
                out = fuse(hyper_layer, q, part, inputs.fusion) if hyper_layer >= 0 else part.out
            else:
                out, images = hyper_or_plain(self.compute, image_tokens, hyper_layer, q, part, inputs.fusion, carry.images)
                carry = carry._replace(images=images)
        return self.o_proj(out), carry

    def _merge_past(
        self, layer: Layer, q: Float[Array, "B H T D"], part: Part, past: Sequence[KeyBlock] | PagedKeys, visible: Visibility
    ) -> Part:
        """Self-attention over the past too."""
        plan = Plan(TEXT, self.compute.attention, _pages_per_chunk(self.config, self.compute, past))
        merged = merge(attend(q, past, visible, plan, layer), part)
        return Part(merged.out.astype(q.dtype), merged.lse)


def _pages_per_chunk(config: ModelConfig, compute: ComputeConfig, past: Sequence[KeyBlock] | PagedKeys) -> int | None:
    """Pages of text that are read at a time."""
    if not isinstance(past, PagedKeys):
        return None
    tokens = compute.text_per_chunk or compute.images_per_chunk * config.vision.tokens_per_image
    return max(1, tokens // past.pages.keys.shape[3])


def _write_layer(cache: Vectors, new: Float[Array, "B K T D"], *, layer: Layer, slot: Int[Array, ""]) -> Vectors:
    write = lambda old, x: jax.lax.dynamic_update_slice(old, x[None], (layer, 0, 0, slot, 0)[: old.ndim])
    written: Vectors = jax.tree.map(write, cache, quantize_like(new, cache))
    return written


def _write_pages(
    pool: Vectors, new: Float[Array, "B K T D"], *, layer: Layer, to: PageSlots
) -> tuple[Vectors, Float[Array, "B K T D"]]:
    """The pool with the new keys or values of a layer, and these as the pool holds them."""
    stored = quantize_like(new, pool)
    written = write_tokens(pool, stored, jnp.asarray(layer, jnp.int32), to.pages, to.slots)
    return written, dequantize(stored, new.dtype)


class DecoderLayer(nn.Module):
    """Pre-norm block; the body of a scan, or a single layer. Returns the carry and, with `collect`, its output to stack."""

    config: ModelConfig
    compute: ComputeConfig
    collect: bool

    @nn.compact
    def __call__(
        self,
        carry: Carry,
        layer: Layer,
        hyper_layer: Layer,  # row among the hyper layers, or -1
        input_norm: Float[Array, " E"],
        inputs: LayerInputs,
    ) -> tuple[Carry, Float[Array, "B T E"] | None]:
        eps = self.config.rms_norm_eps
        with jax.named_scope("decoder_layer"):  # a scan may move operations out of all scopes around it
            x = block_input(constrain(carry.x, _HIDDEN))
            attention = Attention(self.config, self.compute, name="self_attn")
            with jax.named_scope("input_layernorm"):
                normed = rms_norm(x, input_norm, eps)
            mixed, carry = attention(normed, carry, layer, hyper_layer, inputs)
            x = x + mixed
            norm = RMSNorm((self.config.hidden_size,), ("norm",), eps, self.compute, name="post_attention_layernorm")
            x = constrain(x + MLP(self.config, self.compute, name="mlp")(norm(x)), _HIDDEN)
        return carry._replace(x=x), x if self.collect else None


class Qwen2(nn.Module):
    """Token embedding, N decoder layers, final norm and head."""

    config: ModelConfig
    compute: ComputeConfig
    collect_hidden_states: bool = False

    def setup(self) -> None:
        config = self.config
        E, N, eps = config.hidden_size, config.num_hidden_layers, config.rms_norm_eps
        self.embed_tokens, self.embed_tokens_scale = self._declare_table("embed_tokens")
        # Not inside the scanned layers: image tokens pass through the hyper layers' norms before the scan starts.
        self.input_layernorm = RMSNorm((N, E), ("layers", "norm"), eps, self.compute)
        self.hyper_layers = HyperLayers(config, self.compute)
        layer = rematerialized(DecoderLayer, self.compute.remat)
        build = lambda layer: layer(config, self.compute, self.collect_hidden_states)
        # Any: a module, or a list of them.
        self.layers: Any = build(_scanned(layer, N)) if self.compute.scan_layers else [build(layer) for _ in range(N)]
        self.norm = RMSNorm((E,), ("norm",), eps, self.compute)
        if not config.tie_word_embeddings:
            self.lm_head, self.lm_head_scale = self._declare_table("lm_head")

    def _declare_table(self, name: str) -> tuple[Array, Array | None]:
        """A row for each word, zeros up to the next multiple of `vocab_multiple`, and the scales of int8 rows."""
        V, E = self.config.vocab_size, self.config.hidden_size
        padded = V + -V % self.compute.vocab_multiple
        normal = initializers.normal(self.config.initializer_range)
        init = lambda key, shape, dtype: jnp.pad(normal(key, (V, E), dtype), ((0, padded - V), (0, 0)))
        table = declare(self, name, init, (padded, E), ("vocab", "embed"), self.compute)
        return table, declare_scale(self, name, (padded,), ("vocab",), self.compute)

    def image_cache(self, image_features: Float[Array, "B I L E"], image_positions: Int[Array, "B I"]) -> ImageCache:
        """Keys and values of projected images in every hyper layer."""
        scales = self.input_layernorm.scale[np.array(self.config.hyper_layer_indices)]  # [M, E]
        return self.hyper_layers.image_cache(image_features, image_positions, scales)

    def __call__(
        self,
        text: Text,
        images: Images,
        cache: TextCache | None = None,
        past: TextCache | None = None,
    ) -> tuple[Float[Array, "B T E"], TextCache | None, Float[Array, "N1 B T E"] | None]:
        """Hidden states after the final norm, the extended cache, and with `collect_hidden_states` the
        embedding output followed by each layer's, the last one after the final norm.

        With a cache, the T positions follow those it holds and attend to them too, and to those of `past`, which is not
        changed. Like the images, `past` may have fewer rows than the text: B / n, each shared by n successive rows.
        """
        with jax.named_scope("embed_tokens"):
            x = self._embed(text.tokens)
        inputs = LayerInputs(
            positions=text.positions,
            visible=visibility(text.positions, text.segment_ids, text.positions, text.segment_ids),
            cache_length=None,
            past=None if past is None else Past(past, _visible_to_shared(text, past)),
            fusion=self._fusion(text, images),
        )
        carry = Carry(x, images=images.blocks)
        if cache is not None:
            cache = cache.with_ids(text.positions, text.segment_ids)
            visible = visibility(text.positions, text.segment_ids, cache.positions, cache.segment_ids)
            inputs = inputs._replace(visible=visible, cache_length=cache.length)
            carry = Carry(x, (as_one_stack(cache.keys), as_one_stack(cache.values)))
        carry, collected = self._run_layers(carry, inputs)
        out = self.norm(carry.x)
        if collected is not None:
            collected = jnp.concatenate([x[None], collected[:-1], out[None]])
        if cache is not None and carry.cache is not None:
            keys, values = carry.cache
            cache = cache._replace(keys=keys, values=values, length=cache.length + text.tokens.shape[1])
        return out, cache, collected

    def extend_pages(self, text: Text, context: PagedContext) -> tuple[Float[Array, "B T E"], Pages]:
        """Hidden states of text that follows a context, after the final norm, and the pool of text with its keys and values.

        Padding (segment 0) is at the end of a row.
        """
        table, ids = context.text_table, text.segment_ids
        pages = jnp.arange(1, table.pages.shape[1] + 1)
        shown = jnp.where(table.tokens > 0, pages, 0).max(axis=1, initial=0)  # [B], pages of each row
        limits = jnp.where(ids != 0, shown[:, None], 0)
        past = PagedPast(table, Visibility(limits, ids, jnp.ones_like(table.pages)), context.slots)
        inputs = LayerInputs(
            positions=text.positions,
            visible=visibility(text.positions, ids, text.positions, ids),
            cache_length=None,
            fusion=self._paged_fusion(text, context),
            past=past,
        )
        carry, _ = self._run_layers(Carry(self._embed(text.tokens), (context.text.keys, context.text.values)), inputs)
        assert carry.cache is not None
        return self.norm(carry.x), Pages(*carry.cache)

    def logits(self, x: Float[Array, "B T E"]) -> Float[Array, "B T V"]:
        """The head, in float32."""
        return self.padded_logits(x)[..., : self.config.vocab_size]

    def padded_logits(self, x: Float[Array, "B T E"]) -> Float[Array, "B T Vp"]:
        """As `logits`, with -inf for the rows of padding: what is split over the vocabulary stays so."""
        tied = self.config.tie_word_embeddings
        table, scale = (self.embed_tokens, self.embed_tokens_scale) if tied else (self.lm_head, self.lm_head_scale)
        logits = jnp.einsum("bte,ve->btv", x, table.astype(x.dtype), preferred_element_type=jnp.float32)
        if scale is not None:
            logits = rescale(logits, scale)
        logits = constrain(logits, ("batch", "text", "act_vocab"))
        V = self.config.vocab_size
        return logits if logits.shape[-1] == V else jnp.where(jnp.arange(logits.shape[-1]) < V, logits, -jnp.inf)

    def _embed(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T E"]:
        x = self.embed_tokens.astype(self.compute.dtype)[tokens]
        # Each device looks up its columns for other devices' rows too (tokens are small), then they are exchanged.
        x = constrain(constrain(x, ("lookup_row", "text", "embed")), _HIDDEN)
        return x if self.embed_tokens_scale is None else rescale(x, self.embed_tokens_scale[tokens][..., None])

    def _fusion(self, text: Text, images: Images) -> Fusion:
        visible = _visible_to_shared(text, images, inclusive=self.config.image_is_seen_by_its_own_token)
        return Fusion(images.blocks, visible, self.hyper_layers.gate_weights())

    def _paged_fusion(self, text: Text, context: PagedContext) -> Fusion:
        config, table, positions = self.config, context.image_table, context.image_positions
        is_image = (table.tokens > 0).astype(jnp.int32)
        seen_by_own = config.image_is_seen_by_its_own_token
        visible = visibility(text.positions, text.segment_ids, positions, is_image, inclusive=seen_by_own)
        turns = turns_back(positions[..., None] + config.image_rope_offset, config.head_dim, config.rope_theta)
        return Fusion(PagedKeys(context.images, table, turns), visible, self.hyper_layers.gate_weights())

    def _run_layers(self, carry: Carry, inputs: LayerInputs) -> tuple[Carry, Float[Array, "N B T E"] | None]:
        """The last carry, and the outputs of all layers [N, B, T, E] if they are collected."""
        N, norms = self.config.num_hidden_layers, self.input_layernorm.scale
        hyper_layers = np.full(N, -1, np.int32)
        hyper_layers[list(self.config.hyper_layer_indices)] = np.arange(len(self.config.hyper_layers))
        if self.compute.scan_layers:
            return self.layers(carry, jnp.arange(N), jnp.asarray(hyper_layers), norms, inputs)
        collected = []
        for index, layer in enumerate(self.layers):
            carry, x = layer(carry, index, int(hyper_layers[index]), norms[index], inputs)
            collected.append(x)
        return carry, jnp.stack(collected) if self.collect_hidden_states else None


def _visible_to_shared(text: Text, keys: Images | TextCache, *, inclusive: bool = True) -> Visibility:
    """The visibility of `keys`, which may have fewer rows: the successive rows of text that share one are joined here."""
    rows = keys.positions.shape[0]
    positions, segment_ids = (x.reshape(rows, -1) for x in (text.positions, text.segment_ids))
    return visibility(positions, segment_ids, keys.positions, keys.segment_ids, inclusive=inclusive)


def unstack_layers(params: Params) -> Params:
    """The decoder's parameters for `scan_layers` off: `layers`, stacked over N, becomes `layers_0`, `layers_1`, ...

    Takes and returns the whole tree of an Owl3. Rows of numpy arrays are views.
    """
    decoder = dict(params["language_model"])
    stacked = decoder.pop("layers")
    layers = jax.tree.leaves(stacked)[0].shape[0]
    decoder |= {f"layers_{index}": jax.tree.map(lambda x, index=index: x[index], stacked) for index in range(layers)}
    return params | {"language_model": decoder}


def _scanned(layer: type[nn.Module], layers: int) -> type[nn.Module]:
    return nn.scan(
        layer,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=(0, 0, 0, nn.broadcast),
        length=layers,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )
