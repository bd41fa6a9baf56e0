"""Which parameters a run trains: those whose whole path a regex of `train.trained` matches; the others are frozen.

A path is that of `sharding.txt`, e.g. `language_model/hyper_layers/v_kv_proj/kernel`. Frozen parameters are kept
in `train.frozen_dtype`; they get no gradients and have no optimizer state.
"""

import re
from collections.abc import Iterable, Sequence

import jax
from flax.traverse_util import flatten_dict, unflatten_dict

from owl3_jax.config import ConfigError, TrainConfig
from owl3_jax.params import Params


def split_params(params: Params, patterns: Sequence[str]) -> tuple[Params, Params]:
    """The trained and the frozen part of a tree of parameters, as two trees; `join_params` undoes it.

    Raises ConfigError when a pattern matches nothing.
    """
    flat = flatten_dict(params, sep="/")
    matched = {pattern: {path for path in flat if re.fullmatch(pattern, path)} for pattern in patterns}
    _require_matches(matched, flat)
    trained = set().union(*matched.values())
    part = lambda wanted: unflatten_dict({path: x for path, x in flat.items() if (path in trained) == wanted}, sep="/")
    return part(True), part(False)


def join_params(trained: Params, frozen: Params) -> Params:
    """The whole tree, from its two parts."""
    return unflatten_dict(flatten_dict(trained) | flatten_dict(frozen))


def lower_frozen(params: Params, config: TrainConfig) -> Params:
    """The same parameters, the frozen ones in `config.frozen_dtype`."""
    trained, frozen = split_params(params, config.trained)
    return join_params(trained, jax.tree.map(lambda x: x.astype(config.frozen_dtype), frozen))


def _require_matches(matched: dict[str, set[str]], paths: Iterable[str]) -> None:
    unused = [repr(pattern) for pattern, found in matched.items() if not found]
    if unused:
        parts = {"/".join([*path.split("/")[:2], "..."]) if path.count("/") > 1 else path for path in paths}
        raise ConfigError(
            f"train.trained: {', '.join(unused)} matches no parameter; a regex must match a whole path. "
            f"The paths are {', '.join(sorted(parts))}"
        )
