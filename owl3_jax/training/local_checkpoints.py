"""Checkpoints on each host's own disk: taken often, and read by the same processes after a restart.

Every process writes what its devices hold, for itself alone: no host waits for another one, or for a bucket. They only serve a
run that comes back on the same hosts, with the same processes and mesh; after any other restart `Checkpoints` has the last one.
So a step counts if all processes have it.
"""

import dataclasses
import json
import secrets
import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from owl3_jax.batch import AnyArray
from owl3_jax.config import Config, ConfigError, JsonTree, load_json_tree
from owl3_jax.host.files import write_text
from owl3_jax.params import Params
from owl3_jax.sharding import describe_mesh
from owl3_jax.training.checkpoint import DamagedError, run_differences

_KEPT = 2  # the last ones; one of them may be damaged, or be missing on another host
_NAME, _OWNER = "run_id", "owner.json"


class LocalCheckpoints:
    """The checkpoints of one process. A context manager: leaving it waits for a save in progress."""

    def __init__(self, folder: Path, workdir: Path, config: Config, mesh: Mesh) -> None:
        """Those from which this run cannot go on are removed: of another mesh, number of processes, model or data.

        Args:
            folder: on this host's disk; runs with different workdirs can share it.
            workdir: of the run. When that is deleted, its checkpoints here count for nothing.
            config: of the run.
            mesh: of the run.
        """
        self._folder = folder.absolute() / _name_of(workdir) / f"process_{jax.process_index()}"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._gave_up = False
        alone = ocp.options.MultiprocessingOptions(
            primary_host=None, active_processes={jax.process_index()}, barrier_sync_key_prefix=f"local_{jax.process_index()}"
        )
        self._manager = ocp.CheckpointManager(
            self._folder,
            item_handlers=_own_shards(alone),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=ocp.checkpoint_managers.LatestN(_KEPT),
                cleanup_tmp_directories=True,
                multiprocessing_options=alone,
                save_root_metadata=False,
                create=False,
            ),
        )
        layout: JsonTree = {"processes": jax.process_count(), "mesh": describe_mesh(mesh)}
        if not self._is_of(layout, config):
            for step in self._manager.all_steps():
                self._manager.delete(step)
        write_text(self._folder / _OWNER, json.dumps(layout | {"config": dataclasses.asdict(config)}))

    def __enter__(self) -> "LocalCheckpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            self._manager.close()
        except (OSError, ValueError) as error:
            self._give_up(error)

    def steps(self) -> list[int]:
        """Those that all processes have."""
        own = np.full(2 * _KEPT, -1, np.int32)
        found = sorted(self._manager.all_steps())[-len(own) :]
        own[: len(found)] = found
        gathered = np.asarray(multihost_utils.process_allgather(own)).reshape(jax.process_count(), -1)
        return sorted(set.intersection(*({int(step) for step in row if step >= 0} for row in gathered)))

    def save(self, step: int, tree: Params) -> None:
        """Saves in the background. After an error there are no more: the run has other checkpoints, and goes on."""
        if self._gave_up or step in self._manager.all_steps():
            return
        try:
            self._manager.save(step, args=ocp.args.PyTreeSave(jax.tree.map(_without_key, tree)))
        except (OSError, ValueError) as error:  # of this save, or of the one before
            self._give_up(error)

    def restore(self, step: int, abstract: Params) -> Params:
        """The arrays in the shardings of `abstract`. Raises DamagedError when they cannot be read."""
        wanted = jax.tree.map(_abstract_without_key, abstract)
        arguments = ocp.checkpoint_utils.construct_restore_args(wanted)
        try:
            found = self._manager.restore(step, args=ocp.args.PyTreeRestore(wanted, restore_args=arguments))
        except (OSError, ValueError, KeyError) as error:
            raise DamagedError(f"cannot read local checkpoint {self.place(step)}: {error}") from error
        restored: Params = jax.tree.map(_with_key, found, abstract)
        return restored

    def dtypes(self, step: int) -> dict[str, np.dtype]:
        """Those of the parameters in a checkpoint, by path. Raises DamagedError."""
        try:
            params = self._manager.item_metadata(step)["params"]
            return {path: np.dtype(x.dtype) for path, x in flatten_dict(params, sep="/").items()}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DamagedError(f"cannot read local checkpoint {self.place(step)}: {error}") from error

    def place(self, step: int) -> Path:
        """The folder of a step."""
        return self._folder / str(step)

    def _give_up(self, error: Exception) -> None:
        """A full disk here costs no more than the steps since the last checkpoint in the workdir."""
        self._gave_up = True
        print(f"local checkpoints are given up: {error}", file=sys.stderr, flush=True)

    def _is_of(self, layout: JsonTree, config: Config) -> bool:
        try:
            owner = json.loads((self._folder / _OWNER).read_text())
            return not run_differences(load_json_tree(Config, owner.pop("config")), config) and bool(owner == layout)
        except (OSError, ValueError, KeyError, ConfigError):
            return False


def _own_shards(alone: ocp.options.MultiprocessingOptions) -> ocp.PyTreeCheckpointHandler:
    """Writes of each array the shards of this process, also those of which another one has a copy."""
    own = ocp.type_handlers.ArrayHandler(primary_host=None, replica_id=None, use_replica_parallel=False)
    registry = ocp.type_handlers.create_type_handler_registry((jax.Array, own))
    return ocp.PyTreeCheckpointHandler(multiprocessing_options=alone, type_handler_registry=registry)


def _name_of(workdir: Path) -> str:
    """A name that the run has got when its workdir was made, the same in all processes."""
    path = workdir / _NAME
    if jax.process_index() == 0 and not path.exists():
        write_text(path, secrets.token_hex(8))
    name = np.frombuffer(path.read_bytes() if jax.process_index() == 0 else bytes(16), np.uint8)
    return bytes(np.asarray(multihost_utils.broadcast_one_to_all(name)).astype(np.uint8)).decode()


def _is_key(x: AnyArray) -> bool:
    return bool(jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key))


def _without_key(x: AnyArray) -> AnyArray:
    return jax.random.key_data(x) if _is_key(x) else x


def _abstract_without_key(x: AnyArray) -> AnyArray:
    if not _is_key(x):
        return x
    data = jax.eval_shape(jax.random.key_data, x)
    return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=x.sharding)


def _with_key(x: AnyArray, like: AnyArray) -> AnyArray:
    return jax.random.wrap_key_data(x) if _is_key(like) else x
