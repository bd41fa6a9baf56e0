"""Checkpoints of a run: `workdir/checkpoints/STEP/` with four items, or five.

    params/     the parameters: all that `owl3_jax.convert.load` reads; of a run with adapters that starts from a checkpoint,
                those that it trains: `run/` says where the others are
    progress/   step, optimizer state, random key, and what tells bad steps from good ones
    ema/        with train.ema_decay: as params/, the moving average in place of what is trained
    data/       how far the lane of each row of the batches has come (`owl3_jax.data.lanes`)
    sums/       a checksum of each array (`owl3_jax.training.checksums`)
    run/        the run's Config, as JSON: no checkpoint is read as another model's

Every array is read into the sharding of the run that resumes, so that may have another mesh, and another number of processes.

A checkpoint is written under a temporary name, in the background, and renamed once all of it is on disk: a process
killed or a disk filled during a save leaves the one before as it was, and only complete checkpoints are ever seen.

Of orbax's two interfaces this uses CheckpointManager with `args.Composite`, because the newer one is still called
experimental.
"""

import contextlib
import dataclasses
import logging
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Int32
from orbax.checkpoint._src.metadata.array_metadata_store import Store  # has no public name

from owl3_jax.config import Config, ConfigError, JsonTree, TrainConfig, field_differences, load_json_tree
from owl3_jax.formats.workdir import CHECKPOINTS
from owl3_jax.params import Params
from owl3_jax.training.checksums import checksums, names_of
from owl3_jax.training.frozen import holds_all, join_params, saved_paths, split_params, trained_paths
from owl3_jax.training.step import TrainState

NO_PARAMS: Params = {}
NO_METRICS: Mapping[str, float] = MappingProxyType({})
LANES, _SUMS = "lanes", "sums"
_LONGEST_END = 60.0  # seconds that a process with an error waits for a save with others
_SLICED = 2**20  # bytes of the parts in which one array is written
Lanes = Int32[jax.Array, "rows S"]  # the state of each, split as the rows of a batch

# Settings of the data that change no batch: a run may be resumed under other ones.
_FREE_DATA_FIELDS = ("data.data_dir", "data.prefetch", "data.workers", "data.max_skipped", "data.timeout")
# Settings of the training that change what a state consists of: a run must be resumed under the same ones.
_STATE_FIELDS = (
    "train.trained",
    "train.frozen_dtype",
    "train.ema_decay",
    "lora",
    "optimizer.name",
    "optimizer.state_dtype",
    "optimizer.groups",
)


class SavedRunError(RuntimeError):
    """A run's checkpoint that is missing, does not fit or could not be written, with what to do about it."""


class DamagedError(SavedRunError):
    """A checkpoint whose files cannot be read, or are not those that were saved."""


class Checkpoints:
    """The checkpoints of one training run, to save and to resume from.

    A context manager: leaving it waits for a save in progress. With an error, in a run of several processes, not for ever:
    others, which have to take part in the save, may wait for this one.
    """

    def __init__(self, workdir: Path, config: Config) -> None:
        _silence_orbax()
        _write_small_arrays_whole()
        self._config = config
        self._passed_over: list[int] = []
        self._manager = ocp.CheckpointManager(
            (workdir / CHECKPOINTS).absolute(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=_preservation(config.train),
                best_fn=None if config.train.keep_best is None else _value_of(config.train.keep_best),
                cleanup_tmp_directories=True,  # what a killed process left half-written
            ),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None or jax.process_count() == 1:
            with self._naming_the_last_good_step():
                self._manager.close()
        else:
            closing = threading.Thread(target=self._close_beside_an_error, daemon=True)
            closing.start()
            closing.join(_LONGEST_END)

    def _close_beside_an_error(self) -> None:
        with contextlib.suppress(Exception):  # the error that the run ends with is the first one
            self._manager.close()

    def steps(self) -> list[int]:
        """The training steps of all complete checkpoints."""
        return list(self._manager.all_steps())

    def pass_over(self, steps: Sequence[int]) -> None:
        """Takes these checkpoints as unreadable: the next one that is saved replaces them."""
        self._passed_over = list(steps)

    def check_same_run(self) -> None:
        """Raises SavedRunError if the last checkpoint has another model, processor, data or trained part; it lists these.

        Those whose description cannot be read are left out.
        """
        for step in sorted(self.steps(), reverse=True):
            try:
                saved = _restore_config(self._manager, step)
            except DamagedError:
                continue
            self._require_same_run(step, saved)
            return

    def _require_same_run(self, step: int, saved: Config) -> None:
        _require_no_differences(self._manager, step, run_differences(saved, self._config))

    def save(self, step: int, state: TrainState, lanes: Lanes, metrics: Mapping[str, float] = NO_METRICS) -> None:
        """Saves in the background; returns when the arrays are off the device and the save before this one is done.

        `metrics` are those of the validation of this step, if there was one.

        Raises SavedRunError when that earlier save has failed.
        """
        with self._naming_the_last_good_step():
            while self._passed_over:
                self._manager.delete(self._passed_over.pop())
            if step in self._manager.all_steps():
                return
            items = ocp.args.Composite(
                **{name: ocp.args.StandardSave(tree) for name, tree in self.arrays(state, lanes).items()},
                run=ocp.args.JsonSave(self._description()),
            )
            best = self._config.train.keep_best
            known = {best: metrics[best]} if best and math.isfinite(metrics.get(best, math.nan)) else None
            self._manager.save(step, args=items, metrics=known)

    def check_for_errors(self) -> None:
        """Raises SavedRunError when a save in the background has failed; does not wait."""
        if not self._manager.is_saving_in_progress():
            self.wait()  # orbax forgets an error once its own thread has seen it; only waiting raises it for sure

    def wait(self) -> None:
        """Waits until everything is on disk; raises SavedRunError when it could not be written."""
        with self._naming_the_last_good_step():
            self._manager.wait_until_finished()

    def restore(
        self, step: int, abstract: TrainState, lanes: jax.ShapeDtypeStruct, base: Params = NO_PARAMS
    ) -> tuple[TrainState, Lanes]:
        """The saved state and the states of the lanes, each array straight in the sharding of its place in what is given.

        `base` are the parameters that the checkpoint does not hold (`owl3_jax.training.start.base_params`).

        Raises SavedRunError: it is of another run; DamagedError: its files cannot be read, or have changed.
        """
        self._require_same_run(step, _restore_config(self._manager, step))
        wanted = self.abstract_arrays(abstract, lanes)
        items = _restore(self._manager, step, **{name: ocp.args.StandardRestore(tree) for name, tree in wanted.items()})
        return self.state_of(Path(self._manager.directory) / str(step), {name: items[name] for name in wanted}, base)

    def arrays(self, state: TrainState, lanes: Lanes) -> dict[str, Params]:
        """All arrays of a checkpoint by item, with their checksums."""
        arrays = self._arrays(state, lanes)
        return arrays | {_SUMS: checksums(arrays)}

    def abstract_arrays(self, abstract: TrainState, lanes: jax.ShapeDtypeStruct) -> dict[str, Params]:
        """Their shapes, dtypes and shardings."""
        arrays = self._arrays(abstract, lanes)
        return arrays | {_SUMS: dict.fromkeys(names_of(arrays), jax.ShapeDtypeStruct((), np.uint32, sharding=_whole(lanes)))}

    def state_of(self, place: Path, items: Mapping[str, Params], base: Params = NO_PARAMS) -> tuple[TrainState, Lanes]:
        """What was read from a place, as `restore` returns it. Raises DamagedError when it has other checksums."""
        found = checksums({name: tree for name, tree in items.items() if name != _SUMS})
        if changed := [name for name, value in items[_SUMS].items() if int(value) != int(found[name])]:
            raise DamagedError(
                f"cannot read checkpoint {place}: {len(changed)} arrays are not those that were saved, "
                f"{', '.join(changed[:3])} among them"
            )
        ema = split_params(items["ema"], trained_paths(self._config))[0] if "ema" in items else {}
        return TrainState(params=join_params(items["params"], base), ema=ema, **items["progress"]), items["data"][LANES]

    def _arrays(self, state: TrainState, lanes: Lanes | jax.ShapeDtypeStruct) -> dict[str, Params]:
        """The items of a checkpoint that hold arrays."""
        arrays = {"params": self._saved(state.params), "progress": _progress(state), "data": {LANES: lanes}}
        return arrays | ({"ema": self._saved(state.averaged)} if state.ema else {})

    def _saved(self, params: Params) -> Params:
        return params if holds_all(self._config) else split_params(params, saved_paths(self._config))[0]

    def _description(self) -> JsonTree:
        description: JsonTree = {"config": dataclasses.asdict(self._config)}
        if holds_all(self._config):
            return description
        return description | {"base": {"directory": self._config.start.checkpoint, "dtype": self._config.train.frozen_dtype}}

    @contextlib.contextmanager
    def _naming_the_last_good_step(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:  # ValueError is TensorStore's, with the operating system's words inside
            directory = Path(self._manager.directory)
            complete = ocp.utils.checkpoint_steps(directory)
            good = f"step {max(complete)}, from which the same command resumes" if complete else "none yet"
            raise SavedRunError(
                f"could not write a checkpoint to {directory}: {error}. If the disk is full, make room. "
                f"The last complete checkpoint is {good}"
            ) from error


def _preservation(settings: TrainConfig) -> ocp.checkpoint_managers.AnyPreservationPolicy:
    """Which checkpoints are kept."""
    policies = [ocp.checkpoint_managers.LatestN(settings.checkpoints_to_keep)]
    if settings.keep_every is not None:
        policies.append(ocp.checkpoint_managers.EveryNSteps(settings.keep_every))
    if settings.keep_best is not None:
        value_of, is_loss = _value_of(settings.keep_best), "loss" in settings.keep_best.split("/")
        best = ocp.checkpoint_managers.BestN(
            get_metric_fn=value_of, reverse=is_loss, n=1, keep_checkpoints_without_metrics=False
        )
        policies.append(best)
    return ocp.checkpoint_managers.AnyPreservationPolicy(policies)


def _value_of(metric: str) -> Callable[[Mapping[str, float]], float]:
    return lambda metrics: metrics.get(metric, math.nan)


def run_differences(saved: Config, wanted: Config) -> list[str]:
    """One line for each setting that a run must have in common with the one that it goes on from, and has not."""
    differences = config_differences(saved, wanted, "model", "processor", "data")
    differences = [line for line in differences if not line.startswith(_FREE_DATA_FIELDS)]
    trained = config_differences(saved, wanted, "train", "lora", "optimizer")
    return differences + [line for line in trained if line.startswith(_STATE_FIELDS)]


def config_differences(saved: Config, wanted: Config, *sections: str) -> list[str]:
    """One line for each field of those sections that differs: `model.hidden_size: 64 there, 128 in this run`."""
    pairs = ((getattr(saved, section), getattr(wanted, section), section) for section in sections)
    return [line for pair in pairs for line in field_differences(*pair)]


def _whole(lanes: jax.ShapeDtypeStruct) -> jax.sharding.Sharding | None:
    """A full copy on every device, of the mesh that the lanes are split over."""
    given = lanes.sharding
    return NamedSharding(given.mesh, PartitionSpec()) if isinstance(given, NamedSharding) else given


def _progress(state: TrainState) -> dict[str, object]:
    return {"step": state.step, "opt_state": state.opt_state, "rng": state.rng, "guard": state.guard}


def _restore(manager: ocp.CheckpointManager, step: int, **items: ocp.args.CheckpointArgs) -> ocp.args.Composite:
    try:
        return manager.restore(step, args=ocp.args.Composite(**items))
    except (OSError, ValueError, KeyError) as error:
        raise DamagedError(f"cannot read checkpoint {Path(manager.directory) / str(step)}: {error}") from error


def _restore_config(manager: ocp.CheckpointManager, step: int) -> Config:
    """The Config that a checkpoint was made under."""
    run = _restore(manager, step, run=ocp.args.JsonRestore()).run
    try:
        return load_json_tree(Config, run["config"])
    except ConfigError as error:
        raise SavedRunError(f"checkpoint {Path(manager.directory) / str(step)} is of another version: {error}") from error


def _require_no_differences(manager: ocp.CheckpointManager, step: int, differences: list[str]) -> None:
    if differences:
        raise SavedRunError(
            f"checkpoint {Path(manager.directory) / str(step)} does not fit this run; use its settings, or another workdir:\n  "
            + "\n  ".join(differences)
        )


def _write_small_arrays_whole() -> None:
    """Copies of an array on several devices are written in parts, one from each; for small ones, cutting takes longer."""
    store = Store()  # knows which arrays are random keys
    handler = ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=_SLICED, array_metadata_store=store)
    ocp.type_handlers.register_type_handler(jax.Array, handler, override=True)


def _silence_orbax() -> None:
    """Keeps orbax from logging an error's traceback several times before it raises it."""
    logging.getLogger("absl").addFilter(_not_from_orbax)  # adding it again changes nothing


def _not_from_orbax(record: logging.LogRecord) -> bool:
    return "orbax" not in Path(record.pathname).parts
