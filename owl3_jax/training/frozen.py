"""Which parameters a run trains: those that `train.trained` names, and LoRA's adapters; the others are frozen.

A path is that of `sharding.txt`, e.g. `language_model/hyper_layers/v_kv_proj/kernel`. Frozen parameters are kept
in `train.frozen_dtype`; they get no gradients and have no optimizer state.
"""

import functools
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence, Set

import flax.linen as nn
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from owl3_jax.config import Config, ConfigError
from owl3_jax.nn.linear import is_adapter
from owl3_jax.params import Params
from owl3_jax.training.lora import abstract_run_params, is_trained_adapter
from owl3_jax.training.parts import patterns_of

DTypes = Mapping[str, np.dtype]  # by path


@functools.lru_cache
def trained_paths(config: Config) -> frozenset[str]:
    """The paths of the parameters that a run trains: those that `train.trained` names, and its adapters.

    Raises ConfigError when a pattern matches nothing.
    """
    paths = list(flatten_dict(nn.unbox(abstract_run_params(config)), sep="/"))
    adapters = frozenset(filter(is_trained_adapter, paths))
    return match_paths(trained_patterns(config), itertools.filterfalse(is_adapter, paths)) | adapters


def trained_patterns(config: Config) -> tuple[str, ...]:
    """The regexes of whole paths that `train.trained` means."""
    return patterns_of(config.train.trained or (() if config.lora.rank else (".*",)))


def match_paths(patterns: Sequence[str], paths: Iterable[str]) -> frozenset[str]:
    """The paths that a pattern matches as a whole. Raises ConfigError when one matches nothing."""
    paths = list(paths)
    matched = {pattern: {path for path in paths if re.fullmatch(pattern, path)} for pattern in patterns}
    _require_matches(matched, paths)
    return frozenset().union(*matched.values())


def split_params(params: Params, trained: Set[str]) -> tuple[Params, Params]:
    """The trained and the frozen part of a tree of parameters, as two trees; `join_params` undoes it."""
    flat = flatten_dict(params, sep="/")
    part = lambda wanted: unflatten_dict({path: x for path, x in flat.items() if (path in trained) == wanted}, sep="/")
    return part(True), part(False)


def join_params(trained: Params, frozen: Params) -> Params:
    """The whole tree, from its two parts."""
    return unflatten_dict(flatten_dict(trained) | flatten_dict(frozen))


def holds_all(config: Config) -> bool:
    """Whether a run's checkpoints hold all its parameters; of a run with adapters that starts from a checkpoint, no."""
    return config.start.checkpoint is None or not config.lora.rank


def saved_paths(config: Config) -> frozenset[str]:
    """The paths of the parameters that checkpoints of a run with adapters hold, unless they hold all."""
    paths = frozenset(flatten_dict(nn.unbox(abstract_run_params(config)), sep="/"))
    return trained_paths(config) | frozenset(filter(is_adapter, paths))


def lower_frozen(params: Params, config: Config, dtypes: DTypes) -> Params:
    """The same parameters, the frozen ones in `train.frozen_dtype`; without one, in those of `dtypes`, if they are there."""
    trained, frozen = split_params(params, trained_paths(config))
    chosen = config.train.frozen_dtype
    lower = lambda path, x: x if is_adapter(path) else x.astype(chosen or dtypes.get(path, x.dtype))
    lowered = {path: lower(path, x) for path, x in flatten_dict(frozen, sep="/").items()}
    return join_params(trained, unflatten_dict(lowered, sep="/"))


def _require_matches(matched: dict[str, set[str]], paths: Iterable[str]) -> None:
    unused = [repr(pattern) for pattern, found in matched.items() if not found]
    if unused:
        parts = {"/".join([*path.split("/")[:2], "..."]) if path.count("/") > 1 else path for path in paths}
        raise ConfigError(
            f"train.trained: {', '.join(unused)} matches no parameter; a regex must match a whole path. "
            f"The paths are {', '.join(sorted(parts))}"
        )
