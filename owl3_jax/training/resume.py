"""From where a run goes on: the last checkpoint of either tier that all processes can read."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from owl3_jax import sharding
from owl3_jax.config import Config
from owl3_jax.data.lanes import state_size
from owl3_jax.formats.errors import CheckpointError
from owl3_jax.training.checkpoint import Checkpoints, DamagedError, Lanes
from owl3_jax.training.local_checkpoints import LocalCheckpoints
from owl3_jax.training.start import base_params, stored_dtypes
from owl3_jax.training.step import TrainState, abstract_state


def last_state(
    config: Config, mesh: Mesh, workdir: Path, checkpoints: Checkpoints, local: LocalCheckpoints | None
) -> tuple[int, TrainState, Lanes] | None:
    """The last checkpoint that can be read, with its step; None of a new run. All processes take the same one.

    Raises the error of the last one when there are only damaged ones.
    """
    problems: list[Exception] = []
    tiers: dict[int, LocalCheckpoints | None] = dict.fromkeys(local.steps(), local) if local else {}
    tiers |= dict.fromkeys(checkpoints.steps())
    places = sorted(tiers.items(), key=lambda place: place[0], reverse=True)
    lanes = _abstract_lanes(config, mesh)
    base = base_params(config, mesh) if places else {}
    for number, (step, tier) in enumerate(places):
        found = None
        try:
            if tier is None:
                found = checkpoints.restore(step, abstract_state(config, mesh, stored_dtypes(workdir, step)), lanes, base)
            else:
                arrays = checkpoints.abstract_arrays(abstract_state(config, mesh, tier.dtypes(step)), lanes)
                found = checkpoints.state_of(tier.place(step), tier.restore(step, arrays), base)
        except (DamagedError, CheckpointError) as error:
            problems.append(error)
        if multihost_utils.process_allgather(np.array(found is not None)).all() and found is not None:
            checkpoints.pass_over([passed for passed, of in places[:number] if of is None])
            return step, *found
        if found is not None:
            problems.append(DamagedError(f"another process cannot read checkpoint {step}: see its output"))
        print(f"checkpoint {step} is passed over: {problems[-1]}", file=sys.stderr, flush=True)
    if problems:
        raise problems[0]
    return None


def _abstract_lanes(config: Config, mesh: Mesh) -> jax.ShapeDtypeStruct:
    sharding.own_rows(mesh, config.data.rows)  # raises ConfigError where the mesh does not divide them
    shape = config.data.rows, state_size(config.data)
    return jax.ShapeDtypeStruct(shape, jnp.int32, sharding=sharding.batch_sharding(mesh))
