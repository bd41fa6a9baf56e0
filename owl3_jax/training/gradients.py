"""Loss and gradients of one batch, microbatch by microbatch.

The loss is a mean over all targets of the batch. Their number is known before any of it is computed, so that the
gradients of the microbatches simply add up.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, Shaped

from owl3_jax.batch import Batch
from owl3_jax.config import Config
from owl3_jax.models.owl3 import Owl3, apply
from owl3_jax.params import Params
from owl3_jax.training.frozen import join_params, split_params, trained_paths
from owl3_jax.training.loss import LossSums, next_token_sums, target_weights

Metrics = dict[str, Array]
Sums = tuple[LossSums, Params]  # and gradients


def make_loss_and_gradients(config: Config) -> Callable[..., tuple[Metrics, Params]]:
    """A function (params, batch, key) -> (metrics, gradients).

    Metrics: loss (mean cross-entropy over weighted targets), accuracy, target_tokens (sum of the weights); of several sources
    source_losses and source_target_tokens, [Q] each. Gradients: of the loss and z-loss with respect to the trained
    parameters, a tree without the frozen ones. The key draws the augmentation (`train.shift_pixels`).
    """
    settings = config.train
    sums_of = _make_loss_sums(config)

    def loss_and_gradients(params: Params, batch: Batch, key: Key[Array, ""]) -> tuple[Metrics, Params]:
        trained, frozen = split_params(params, trained_paths(config))
        if settings.shift_pixels:
            with jax.named_scope("augmentation"):
                batch = batch._replace(pixels=shift_images(key, batch.pixels, settings.shift_pixels))
        targets = jnp.maximum(target_weights(batch).sum(), 1.0)

        def loss(trained: Params, number: Int[Array, ""]) -> tuple[Array, LossSums]:
            dropout = jax.random.fold_in(jax.random.fold_in(key, 1), number) if config.lora.dropout else None
            sums = sums_of(join_params(trained, frozen), microbatch(batch, settings.microbatches, number), dropout)
            return sums.minimised / targets, sums

        def add(total: Sums, number: Int[Array, ""]) -> tuple[Sums, None]:
            (_, sums), grads = jax.value_and_grad(loss, has_aux=True)(trained, number)
            with jax.named_scope("gradient_sum"):
                return jax.tree.map(lambda x, y: x + y.astype(x.dtype), total, (sums, grads)), None

        start = LossSums.zero(len(config.data.sources)), jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), trained)
        (sums, grads), _ = jax.lax.scan(add, start, jnp.arange(settings.microbatches))
        grads = jax.tree.map(lambda g, x: g.astype(x.dtype), grads, trained)
        metrics = {"loss": sums.nll.sum() / targets, "accuracy": sums.correct / targets, "target_tokens": sums.weights.sum()}
        if len(config.data.sources) > 1:
            metrics |= {"source_losses": sums.nll / jnp.maximum(sums.weights, 1.0), "source_target_tokens": sums.weights}
        return metrics, grads

    return loss_and_gradients


def make_loss_of_batch(config: Config) -> Callable[[Params, Batch], LossSums]:
    """A function (params, batch) -> the sums that its loss and accuracy come from: no dropout, augmentation, quantization."""
    config = dataclasses.replace(config, compute=config.compute.without_quantization())
    sums_of, parts = _make_loss_sums(config), config.train.microbatches

    def loss_of_batch(params: Params, batch: Batch) -> LossSums:
        def add(total: LossSums, number: Int[Array, ""]) -> tuple[LossSums, None]:
            return jax.tree.map(jnp.add, total, sums_of(params, microbatch(batch, parts, number), None)), None

        return jax.lax.scan(add, LossSums.zero(len(config.data.sources)), jnp.arange(parts))[0]

    return loss_of_batch


def _make_loss_sums(config: Config) -> Callable[[Params, Batch, Key[Array, ""] | None], LossSums]:
    model = Owl3(config.model, config.compute)

    def loss_sums(params: Params, batch: Batch, dropout: Key[Array, ""] | None) -> LossSums:
        x: Float[Array, "B T E"] = apply(model, params, "last_hidden_state", batch, dropout=dropout)
        with jax.named_scope("loss"):
            return next_token_sums(
                x,
                head_table(params),
                batch,
                vocab_size=config.model.vocab_size,
                chunk=config.train.loss_chunk,
                sources=len(config.data.sources),
                z_loss=config.train.z_loss,
            )

    return loss_sums


def head_table(params: Params) -> Float[Array, "Vp E"]:
    """The rows whose products with a hidden state are its logits: of the embedding, where the two are tied."""
    decoder = params["language_model"]
    return decoder.get("lm_head", decoder["embed_tokens"])


def microbatch(batch: Batch, count: int, number: Int[Array, ""]) -> Batch:
    """Rows `number`, `number` + `count`, ... : rows that are spread over devices stay where they are, equally many on each."""

    def cut(x: Shaped[Array, "B *rest"]) -> Shaped[Array, "b *rest"]:
        return jax.lax.dynamic_index_in_dim(x.reshape(-1, count, *x.shape[1:]), number, axis=1, keepdims=False)

    return jax.tree.map(cut, batch)


def shift_images(key: Key[Array, ""], pixels: Shaped[Array, "B I S S 3"], most: int) -> Shaped[Array, "B I S S 3"]:
    """Augmentation: each image moved by up to `most` pixels along both axes; what is uncovered is black."""
    B, I, S = pixels.shape[:3]
    padded = jnp.pad(pixels, ((0, 0), (0, 0), (most, most), (most, most), (0, 0)))
    starts = jax.random.randint(key, (B, I, 2), 0, 2 * most + 1)
    crop = lambda image, start: jax.lax.dynamic_slice(image, (*start, 0), (S, S, 3))
    return jax.vmap(jax.vmap(crop))(padded, starts)
