"""optax's optimizers by name, with clipping by global norm, a schedule, and parameter groups."""

import re
from collections.abc import Callable

import jax
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from optax import contrib

from owl3_jax.batch import AnyArray
from owl3_jax.config import ConfigError, GroupConfig, OptimizerConfig
from owl3_jax.convert.table import TABLE
from owl3_jax.params import Params
from owl3_jax.training.parts import patterns_of

# Weight decay is for matrices: not for norms, biases and the learned gate vector.
DECAYED = ("kernel", "embed_tokens", "lm_head", "position_embedding")


def learning_rate_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Linear from zero to the peak over `warmup_steps`, then as `optimizer.schedule` says to `end_learning_rate` at `steps`."""
    peak, end, warmup = config.learning_rate, config.end_learning_rate, config.warmup_steps
    last = max(steps, warmup + 1)
    if config.schedule == "cosine":
        return optax.warmup_cosine_decay_schedule(
            init_value=0.0, peak_value=peak, warmup_steps=warmup, decay_steps=last, end_value=end
        )
    decay = {"linear": last - warmup, "constant": 0, "wsd": min(last - warmup, round(config.decay_share * last))}[
        config.schedule
    ]
    rising, level = optax.linear_schedule(0.0, peak, warmup), optax.constant_schedule(peak)
    if not decay:
        return optax.join_schedules([rising, level], [warmup])
    falling = optax.linear_schedule(peak, end, decay)
    return optax.join_schedules([rising, level, falling], [warmup, last - decay])


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """The optimizer for a run of `steps` steps.

    Its `init` raises ConfigError when a regex of `optimizer.groups` matches none of the parameters.
    """
    optimizer = _NAMED[config.name](config, learning_rate_schedule(config, steps))
    groups = [_scale_by_group(config)] if config.groups else []
    clip = _in_scope("gradient_clip", optax.clip_by_global_norm(config.clip_norm))
    return optax.chain(clip, optimizer, *groups)


def _in_scope(name: str, transformation: optax.GradientTransformation) -> optax.GradientTransformation:
    """The same, whose operations bear a name in profiles."""

    def update(updates: Params, state: optax.OptState, params: Params | None = None) -> tuple[Params, optax.OptState]:
        with jax.named_scope(name):
            return transformation.update(updates, state, params)

    return optax.GradientTransformation(transformation.init, update)


def _adamw(config: OptimizerConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    b1, b2, eps, dtype = config.b1, config.b2, config.eps, config.state_dtype
    if config.groups:
        adam = optax.scale_by_adam(b1=b1, b2=b2, eps=eps, mu_dtype=dtype)
        return optax.chain(adam, *_decays(config), optax.scale_by_learning_rate(rate))
    return optax.adamw(rate, b1=b1, b2=b2, eps=eps, mu_dtype=dtype, weight_decay=config.weight_decay, mask=_is_decayed)


def _lion(config: OptimizerConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    lion = optax.scale_by_lion(b1=config.b1, b2=config.b2, mu_dtype=config.state_dtype)
    return optax.chain(lion, *_decays(config), optax.scale_by_learning_rate(rate))


def _sgd(config: OptimizerConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    momentum = optax.trace(decay=config.b1, accumulator_dtype=config.state_dtype)
    return optax.chain(momentum, *_decays(config), optax.scale_by_learning_rate(rate))


def _adafactor(config: OptimizerConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    # Without its own relative step: the schedule says how large a step is, as for the others.
    factored = optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0))
    return optax.chain(factored, *_decays(config), optax.scale_by_learning_rate(rate))


def _muon(config: OptimizerConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    """Muon for the kernels of linear maps, Adam for all others; consistent_rms gives both the same size of update."""
    muon = contrib.muon(
        1.0,
        beta=config.b1,
        mu_dtype=config.state_dtype,
        adam_b1=config.b1,
        adam_b2=config.b2,
        muon_weight_dimension_numbers=_linear_dims,
        consistent_rms=0.2,
    )
    # It comes with the sign of a step of learning rate 1.
    return optax.chain(muon, optax.scale(-1.0), *_decays(config), optax.scale_by_learning_rate(rate))


_NAMED: dict[str, Callable[[OptimizerConfig, optax.Schedule], optax.GradientTransformation]] = {
    "adamw": _adamw,
    "adafactor": _adafactor,
    "lion": _lion,
    "muon": _muon,
    "sgd": _sgd,
}


_INPUTS = {  # of the kernels of linear maps: first dim of the inputs, and the one after their last
    entry.path: (int(entry.stacked), int(entry.stacked) + (2 if entry.layout == "linear_from_heads" else 1))
    for entry in TABLE
    if entry.layout in ("linear", "linear_from_heads")
}


def _linear_dims(params: Params) -> Params:
    """Which dims of a linear map's kernel are inputs and outputs, the others count layers; None for what is no such kernel."""

    def dims(path: str, kernel: AnyArray) -> contrib.MuonDimensionNumbers | None:
        if path not in _INPUTS:
            return None
        start, stop = _INPUTS[path]
        return contrib.MuonDimensionNumbers(tuple(range(start, stop)), tuple(range(stop, kernel.ndim)))

    return _by_path(params, dims)


def _decays(config: OptimizerConfig) -> list[optax.GradientTransformation]:
    """Weight decay, with the groups' own numbers."""
    values = {config.weight_decay, *(group.weight_decay for group in config.groups if group.weight_decay is not None)}

    def has(value: float, path: str) -> bool:
        group = _group_of(config, path)
        own = config.weight_decay if group is None or group.weight_decay is None else group.weight_decay
        return own == value and path.rpartition("/")[2] in DECAYED

    def mask(value: float) -> Callable[[Params], Params]:
        return lambda params: _by_path(params, lambda path, _: has(value, path))

    return [optax.add_decayed_weights(value, mask(value)) for value in sorted(values) if value]


def _scale_by_group(config: OptimizerConfig) -> optax.GradientTransformation:
    """The steps of each group, at its own learning rate."""

    def init(params: Params) -> optax.EmptyState:
        paths = flatten_dict(params, sep="/")
        for number, group in enumerate(config.groups):
            if not any(_group_of(config, path) == group for path in paths):
                raise ConfigError(f"optimizer.groups[{number}]: {group.match} matches no trained parameter that is left to it")
        return optax.EmptyState()

    def update(updates: Params, state: optax.EmptyState, params: Params | None = None) -> tuple[Params, optax.EmptyState]:
        del params
        return _by_path(updates, lambda path, x: x * _scale(path)), state

    def _scale(path: str) -> float:
        group = _group_of(config, path)
        return 1.0 if group is None else group.learning_rate_scale

    return optax.GradientTransformation(init, update)


def _group_of(config: OptimizerConfig, path: str) -> GroupConfig | None:
    """The first group that a parameter belongs to."""
    return next((g for g in config.groups if any(re.fullmatch(pattern, path) for pattern in patterns_of(g.match))), None)


def _by_path(params: Params, function: Callable[..., object]) -> Params:
    """A tree of what `function` makes of each path and value."""
    flat = flatten_dict(params, sep="/")
    return unflatten_dict({path: function(path, value) for path, value in flat.items()}, sep="/")


def _is_decayed(params: Params) -> Params:
    return _by_path(params, lambda path, _: path.rpartition("/")[2] in DECAYED)
