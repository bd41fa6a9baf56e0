"""The train step: a pure function (state, batch) -> (state, metrics), jitted over the mesh."""

import dataclasses
import re
from collections.abc import Callable
from types import MappingProxyType
from typing import Any, Generic, ParamSpec, TypeVar

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Key

from owl3_jax.batch import AnyArray, Batch
from owl3_jax.compiler_options import training_options
from owl3_jax.config import Config, ConfigError
from owl3_jax.params import Params
from owl3_jax.sharding import (
    batch_sharding,
    devices_along,
    optimizer_shardings,
    param_shardings,
    replicated,
    rows_divisor,
    use_mesh,
)
from owl3_jax.training.checksums import Sums, traced_checksums
from owl3_jax.training.frozen import DTypes, join_params, lower_frozen, split_params, trained_paths
from owl3_jax.training.gradients import Metrics, make_loss_and_gradients
from owl3_jax.training.guard import Guard
from owl3_jax.training.lora import abstract_run_params, initial_run_params
from owl3_jax.training.optimizer import learning_rate_schedule, make_optimizer
from owl3_jax.training.parts import PARTS

NO_DTYPES: DTypes = MappingProxyType({})

P = ParamSpec("P")
R = TypeVar("R")


class OnMesh(Generic[P, R]):
    """A function of arrays, jitted, that is traced, lowered and called with the mesh and the rules set."""

    def __init__(self, function: Callable[P, R], mesh: Mesh, **options: Any) -> None:  # Any: as jax types them
        """`options` are those of `jax.jit`."""
        with use_mesh(mesh):
            self._jitted: jax.stages.Wrapped = jax.jit(function, compiler_options=training_options(), **options)
        self._mesh = mesh

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        with use_mesh(self._mesh):
            result: R = self._jitted(*args, **kwargs)
            return result

    def lower(self, *args: AnyArray) -> jax.stages.Lowered:
        """As `jax.jit(...).lower`."""
        with use_mesh(self._mesh):
            return self._jitted.lower(*args)


@flax.struct.dataclass
class TrainState:
    """All that a run carries from step to step, and that a checkpoint holds: arrays, their shapes or shardings."""

    step: AnyArray  # int32 scalar: steps done
    params: Params  # all of them, the frozen ones in train.frozen_dtype
    opt_state: optax.OptState  # of the trained parameters
    rng: AnyArray  # random key; folded with the step, it chooses the shifts of each batch's images
    ema: Params = flax.struct.field(default_factory=dict)  # moving average of the trained parameters, with train.ema_decay
    guard: Guard = flax.struct.field(default_factory=Guard.fresh)  # tells bad steps from good ones

    @property
    def averaged(self) -> Params:
        """All parameters, the moving average in place of the trained ones; nothing is copied."""
        return unflatten_dict(flatten_dict(self.params) | flatten_dict(self.ema))


def example_batch(config: Config) -> Batch:
    """The shapes and dtypes of one batch over all hosts; nothing is allocated."""
    data, side = config.data, config.model.vision.image_size
    text = jax.ShapeDtypeStruct((data.rows, data.tokens_per_row), jnp.int32)
    image = jax.ShapeDtypeStruct((data.rows, data.images_per_row), jnp.int32)
    pixels = jax.ShapeDtypeStruct((*image.shape, side, side, 3), jnp.uint8)
    weights = jax.ShapeDtypeStruct(text.shape, jnp.float32)
    return Batch(text, text, text, pixels, image, image, weights, text if len(data.sources) > 1 else None)


def abstract_state(config: Config, mesh: Mesh, dtypes: DTypes = NO_DTYPES) -> TrainState:
    """Shapes, dtypes and shardings of the whole state; nothing is allocated.

    `dtypes` are those of frozen parameters where `config.train.frozen_dtype` is None.
    """
    params, key = nn.unbox(abstract_run_params(config)), jax.random.key(0)
    shapes = jax.eval_shape(lambda params, key: _fresh_state(config, params, key, dtypes), params, key)
    shardings = _state_shardings(config, mesh, shapes)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def abstract_like(state: TrainState) -> TrainState:
    """Shapes, dtypes and shardings of a state that is there."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def init_state(config: Config, mesh: Mesh) -> TrainState:
    """A fresh state from config.train.seed, made in place on the mesh."""
    shardings = jax.tree.map(lambda x: x.sharding, abstract_state(config, mesh))
    with use_mesh(mesh):
        init = jax.jit(lambda key: _initial_state(config, key, NO_DTYPES), out_shardings=shardings)
        return init(jax.random.key(config.train.seed))


def state_from(config: Config, mesh: Mesh, params: Params) -> TrainState:
    """A fresh state with given parameters, which are on the mesh already; the optimizer's state is made there."""
    dtypes = {path: x.dtype for path, x in flatten_dict(params, sep="/").items()}
    shardings = jax.tree.map(lambda x: x.sharding, abstract_state(config, mesh, dtypes))
    trained, _ = split_params(params, trained_paths(config))

    def others(trained: Params) -> TrainState:
        _, rng = jax.random.split(jax.random.key(config.train.seed))
        return _state_around(config, {}, trained, rng)

    with use_mesh(mesh):
        state: TrainState = jax.jit(others, out_shardings=dataclasses.replace(shardings, params={}))(trained)
    return dataclasses.replace(state, params=params)


def make_train_step(config: Config, mesh: Mesh) -> OnMesh[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The jitted step (state, batch) -> (state, metrics); it takes over (donates) the state's memory.

    Metrics: loss, accuracy, target_tokens, tokens, images, learning_rate; norms of gradients and updates, `grad_norm` and of
    each trained part `grad_norm/PART`, `update_norm/PART`; `is_bad` (`owl3_jax.training.guard`), and `bad_steps`, how many were
    so far. A bad step leaves parameters and optimizer as they were.
    """
    _check_rows(config, mesh)
    shardings = jax.tree.map(lambda x: x.sharding, abstract_state(config, mesh))
    return OnMesh(
        _step_function(config),
        mesh,
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )


def make_step_checksums(config: Config, mesh: Mesh) -> OnMesh[[TrainState, Batch], Sums]:
    """A function (state, batch) -> checksums of all that the step makes of them. It changes no state, and keeps no new one."""
    take_step = _step_function(config)

    def sums(state: TrainState, batch: Batch) -> Sums:
        new, metrics = take_step(state, batch)
        return traced_checksums({"params": new.params, "opt_state": new.opt_state, "ema": new.ema, "loss": metrics["loss"]})

    return OnMesh(sums, mesh, out_shardings=replicated(mesh))


def _step_function(config: Config) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    loss_and_gradients = make_loss_and_gradients(config)
    optimizer = make_optimizer(config.optimizer, config.train.steps)
    schedule = learning_rate_schedule(config.optimizer, config.train.steps)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        metrics, grads = loss_and_gradients(state.params, batch, jax.random.fold_in(state.rng, state.step))
        with jax.named_scope("gradient_clip"):
            norm = optax.tree.norm(grads)
        is_bad, guard = state.guard.judge(metrics["loss"], norm, config.train.spike)
        trained, frozen = split_params(state.params, trained_paths(config))
        with jax.named_scope("optimizer"):
            updates, opt_state = optimizer.update(grads, state.opt_state, trained)
            new = _new_unless(is_bad, optax.apply_updates(trained, updates), trained)
            opt_state = _new_unless(is_bad, opt_state, state.opt_state)
        with jax.named_scope("metrics"):
            metrics |= {"grad_norm": norm, "learning_rate": schedule(state.step), "is_bad": is_bad, "bad_steps": guard.bad}
            metrics |= _norms("grad_norm", grads) | _norms("update_norm", updates)
            metrics |= {"tokens": (batch.segment_ids != 0).sum(), "images": (batch.image_segment_ids != 0).sum()}
        with jax.named_scope("moving_average"):
            ema = _next_ema(config, new, state.ema)
        return TrainState(state.step + 1, join_params(new, frozen), opt_state, state.rng, ema, guard), metrics

    return train_step


def _initial_ema(config: Config, trained: Params) -> Params:
    if config.train.ema_decay is None:
        return {}
    return jax.tree.map(lambda x: x.astype(jnp.float32), trained)


def _next_ema(config: Config, trained: Params, ema: Params) -> Params:
    if config.train.ema_decay is None:
        return ema
    moved: Params = optax.incremental_update(trained, ema, 1.0 - config.train.ema_decay)
    return moved


Tree = TypeVar("Tree")


def _new_unless(is_bad: Bool[Array, ""], new: Tree, old: Tree) -> Tree:
    kept: Tree = jax.tree.map(lambda n, o: jnp.where(is_bad, o, n), new, old)
    return kept


def _norms(name: str, tree: Params) -> Metrics:
    """The norm of each part of the model, where it has trained parameters."""
    flat = flatten_dict(tree, sep="/")
    of_part = {part: [x for path, x in flat.items() if re.fullmatch(regex, path)] for part, regex in PARTS.items()}
    return {f"{name}/{part}": optax.tree.norm(found) for part, found in of_part.items() if found}


def nonfinite_tensors(config: Config, mesh: Mesh) -> Callable[[TrainState, Batch], list[str]]:
    """A function (state, batch) -> paths of all parameters and gradients that are not finite."""
    loss_and_gradients = make_loss_and_gradients(config)

    def check(state: TrainState, batch: Batch) -> tuple[Params, Params]:
        _, grads = loss_and_gradients(state.params, batch, jax.random.fold_in(state.rng, state.step))
        broken = lambda tree: jax.tree.map(lambda x: ~jnp.isfinite(x).all(), tree)
        return broken(state.params), broken(grads)

    on_mesh = OnMesh(check, mesh)

    def named(state: TrainState, batch: Batch) -> list[str]:
        params, grads = on_mesh(state, batch)
        return [path for path, broken in flatten_dict({"params": params, "grads": grads}, sep="/").items() if broken]

    return named


def _initial_state(config: Config, key: Key[Array, ""], dtypes: DTypes) -> TrainState:
    params_key, rng = jax.random.split(key)
    return _fresh_state(config, initial_run_params(config, params_key), rng, dtypes)


def _fresh_state(config: Config, params: Params, rng: Key[Array, ""], dtypes: DTypes) -> TrainState:
    params = lower_frozen(params, config, dtypes)
    trained, _ = split_params(params, trained_paths(config))
    return _state_around(config, params, trained, rng)


def _state_around(config: Config, params: Params, trained: Params, rng: Key[Array, ""]) -> TrainState:
    """The state before the first step, with what belongs to the trained parameters."""
    opt_state = make_optimizer(config.optimizer, config.train.steps).init(trained)
    return TrainState(jnp.zeros((), jnp.int32), params, opt_state, rng, _initial_ema(config, trained))


def _state_shardings(config: Config, mesh: Mesh, shapes: TrainState) -> TrainState:
    params = param_shardings(abstract_run_params(config), mesh)
    like_params = optimizer_shardings(params, shapes.params, mesh) if config.mesh.shard_optimizer else params
    whole, placed, sizes = replicated(mesh), flatten_dict(like_params, sep="/"), flatten_dict(shapes.params, sep="/")

    def place(path: tuple[object, ...], x: jax.ShapeDtypeStruct) -> jax.sharding.Sharding:
        """As the parameter that it is for, if it has its shape. Adafactor's sums over rows and columns are small: whole."""
        name = "/".join(key.key for key in path if isinstance(key, jax.tree_util.DictKey) and isinstance(key.key, str))
        name = name if name in placed else name.partition("/")[2]  # after the name of one of several optimizers
        return placed[name] if name in placed and x.shape == sizes[name].shape else whole

    opt_state = jax.tree_util.tree_map_with_path(place, shapes.opt_state)
    ema = split_params(params, trained_paths(config))[0] if config.train.ema_decay is not None else {}
    return TrainState(whole, params, opt_state, whole, ema, jax.tree.map(lambda _: whole, shapes.guard))


def _check_rows(config: Config, mesh: Mesh) -> None:
    divisor, parts = rows_divisor(mesh), config.train.microbatches
    if config.data.rows % (divisor * parts):
        times = f" times train.microbatches ({parts})" if parts > 1 else ""
        raise ConfigError(f"data.rows {config.data.rows} is not a multiple of the mesh's data x fsdp axes ({divisor}){times}")
    tensor, heads = devices_along("kv_heads", mesh), config.model.num_key_value_heads
    if heads % tensor:
        raise ConfigError(f"mesh.tensor {tensor} does not divide model.num_key_value_heads {heads}")
