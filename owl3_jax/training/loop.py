"""The training loop: restore or start, then step, report, save and stop."""

import contextlib
import dataclasses
import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from orbax.checkpoint import multihost

from owl3_jax import sharding
from owl3_jax.batch import Batch
from owl3_jax.config import Config
from owl3_jax.data.pipeline import TrainIterator, make_train_iterator
from owl3_jax.data.sources import prepare_sources
from owl3_jax.host.files import write_text
from owl3_jax.host.progress import Progress
from owl3_jax.host.signals import StoppedError, StopSignal
from owl3_jax.params import count_params
from owl3_jax.processing.processor import Processor
from owl3_jax.training import compiled_step
from owl3_jax.training.accounts import Stopwatch
from owl3_jax.training.checkpoint import NO_METRICS, Checkpoints, Lanes
from owl3_jax.training.checksums import Sums
from owl3_jax.training.frozen import split_params, trained_paths
from owl3_jax.training.local_checkpoints import LocalCheckpoints
from owl3_jax.training.lora import abstract_run_params
from owl3_jax.training.processor import make_processor
from owl3_jax.training.profile import Profiler, steps_to_profile
from owl3_jax.training.reports import Files, Reporter
from owl3_jax.training.resume import last_state
from owl3_jax.training.start import resolve_start, start_state
from owl3_jax.training.step import (
    Metrics,
    TrainState,
    abstract_like,
    example_batch,
    make_step_checksums,
    make_train_step,
    nonfinite_tensors,
)
from owl3_jax.training.validation import Scorer, Validation, held_out

_LONGEST_WAIT = 3600  # seconds, for a data set that another process prepares, or a step that it compiles
TENSORS_NAMED = 8  # in the message about a step that broke


class BadStepError(RuntimeError):
    """A step whose loss or gradients are not finite, or a spike; or one too many of them. Names the step, and the tensors."""


class UnreliableError(RuntimeError):
    """A step that was computed twice has given two results."""


class _Run(NamedTuple):
    """What stays the same from step to step."""

    config: Config
    workdir: Path
    compiled: Path | None  # file of the train step, compiled before
    mesh: Mesh
    iterator: TrainIterator
    checkpoints: Checkpoints
    local: LocalCheckpoints | None
    reporter: Reporter
    stop: StopSignal
    validate: Validation
    profiler: Profiler


class _Taken(NamedTuple):
    """A step that was sent to the device and may still be running."""

    step: int
    batch: Batch
    metrics: Metrics


def train(
    config: Config, workdir: Path, compiled: Path | None = None, *, scorer: Scorer | None = None, profile: bool = False
) -> TrainState:
    """Trains the model of `config` in `workdir`, or resumes the run in it, and returns the last state.

    A run starts in this order:
      1. The mesh is made; `start.checkpoint` says which model and processor it is, where the config takes them from there.
      2. The last complete checkpoint is looked for. If it is of another model or other data, the run ends here, before
         anything is written.
      3. The data set is built if it is missing.
      4. config.json, processor.json, tokenizer.json and sharding.txt are written.
      5. Parameters, optimizer, step, random key and the place in the data come from the checkpoint, straight into the
         shardings of this run, and where it is damaged from the one before it. Without one parameters come from
         `start.checkpoint`, or `start.vision` and `start.language`, and without these from `train.seed`. In short: resume >
         start > fresh.
      6. metrics.jsonl and the TensorBoard events continue after that step; later entries are removed.

    `compiled` is a file of `owl3_jax.training.compiled_step`, which is executed in place of compiling the step. `scorer` asks
    the questions of `validation.tasks` (`owl3_jax.evaluation.along`). With `profile` the time of the profiled steps is printed
    at the end by parts of the model, see `owl3_jax.training.profile`.

    SIGTERM or SIGINT, to any process, ends it with a checkpoint: a single process after the current step, several ones after
    a step that they agree on. All processes of a run call this function; only the first prints and writes metrics.

    Raises:
        SavedRunError: see `Checkpoints`.
        CompiledStepError: `compiled` holds the step of another run.
        ConfigError: the batch does not fit the mesh, or the vocabulary the tokenizer; there are tasks, but no `scorer`; too
            few steps are left to profile.
        BadStepError: a step was bad, and `train.bad_steps` is stop; or too many were. The checkpoints are all from before.
        UnreliableError: a step gave other bits when it was computed again.
    """
    stopwatch = Stopwatch()
    mesh, config = sharding.make_mesh(config.mesh), resolve_start(config)
    with Checkpoints(workdir, config) as checkpoints, contextlib.ExitStack() as stack:
        checkpoints.check_same_run()
        processor = make_processor(config)
        prepare_data(config)
        is_first = jax.process_index() == 0
        if is_first:
            _write_run_files(config, workdir, processor, mesh)
        validate = Validation(config, mesh, processor, scorer)
        folder = config.train.local_folder
        local = stack.enter_context(LocalCheckpoints(Path(folder), workdir, config, mesh)) if folder else None
        start, state, lanes = last_state(config, mesh, workdir, checkpoints, local) or (0, start_state(config, mesh), None)
        profiled = steps_to_profile(config.train, start, profile)
        iterator = stack.enter_context(contextlib.closing(make_iterator(config, mesh, processor, lanes)))
        progress = stack.enter_context(Progress(config.train.steps, "step", done=start, silent=not is_first))
        files = Files.of(config, workdir, stopwatch, start) if is_first else None
        reporter = stack.enter_context(Reporter(config, iterator, stopwatch, progress, files))
        stop = stack.enter_context(StopSignal())
        profiler = stack.enter_context(Profiler(profiled, workdir / "profile", progress.say, table=profile))
        run = _Run(config, workdir, compiled, mesh, iterator, checkpoints, local, reporter, stop, validate, profiler)
        _say_what_runs(run, state, start)
        if start < config.train.steps:
            state = _take_steps(run, state, start)
        reporter.end(*_how_it_ended(run, int(state.step)))
        return state


def _take_steps(run: _Run, state: TrainState, start: int) -> TrainState:
    """The steps after `start`; the host runs at most one step ahead of the device."""
    settings = run.config.train
    with run.reporter.stopwatch.time("compile"):
        run.reporter.mark(start)
        train_step = _compile(run, state)
        repeated = make_step_checksums(run.config, run.mesh) if settings.repeat_every else None
        _meet("step compiled")
    run.reporter.stopwatch.turn_to("step")
    taken, step = None, start
    if start and run.validate.is_due(start) and not _in_first_process(run.reporter.has_validation(start)):
        _validate(run, state, start)  # which was interrupted
    while step < settings.steps and not run.stop.must_stop():
        with run.reporter.stopwatch.time("data"):
            batch = next(run.iterator)
        run.reporter.count(batch)
        batch = sharding.shard_batch(batch, run.mesh)
        step += 1
        run.profiler.before(step, state)
        if repeated and settings.repeat_every and step % settings.repeat_every == 0:
            _require_same_bits(step, repeated(state, batch), repeated(state, batch))
        with jax.transfer_guard("disallow"):
            state, metrics = train_step(state, batch)
        run.profiler.after(step, state)
        before, taken = taken, _Taken(step, batch, metrics)
        validates, ends = run.validate.is_due(step), step == settings.steps
        settled = [before, taken] if validates or ends or step % settings.checkpoint_every == 0 else [before]
        if any(_is_undone(run, state, each) for each in settled):
            state = _go_back(run, taken)
            step, taken = int(state.step), None
            continue
        run.reporter.add(metrics)
        if step % settings.log_every == 0 or step == settings.steps:
            run.reporter.report(step)
            run.checkpoints.check_for_errors()
        found = _validate(run, state, step) if validates else NO_METRICS
        _save_when_due(run, state, taken, found)
    if step > start and not (taken and _is_undone(run, state, taken)):
        _save(run, step, state)
    with run.reporter.stopwatch.time("save"):
        run.checkpoints.wait()
    run.profiler.report(train_step)
    return state


def _in_first_process(answer: bool) -> bool:
    return bool(multihost_utils.broadcast_one_to_all(np.array(answer)))


def _is_undone(run: _Run, state: TrainState, taken: _Taken | None) -> bool:
    """Waits for a step; returns whether it was bad and the run has to go back. Raises BadStepError when it has to stop."""
    if taken is None or not taken.metrics["is_bad"]:
        return False
    settings, bad = run.config.train, int(taken.metrics["bad_steps"])
    if settings.bad_steps == "stop":
        raise BadStepError(_what_was_bad(run, state, taken))
    if bad > settings.max_bad_steps:
        raise BadStepError(
            f"step {taken.step} is the bad step number {bad}; train.max_bad_steps allows {settings.max_bad_steps}. Nothing of "
            "it was saved: look at the loss and the data of these steps, and at optimizer.learning_rate"
        )
    return settings.bad_steps == "rewind"


def _go_back(run: _Run, taken: _Taken) -> TrainState:
    """The last good state. The batches since then, `taken`'s among them, are left out: the iterator stays where it is."""
    run.checkpoints.wait()
    found = last_state(run.config, run.mesh, run.workdir, run.checkpoints, run.local)
    state = start_state(run.config, run.mesh) if found is None else found[1]
    run.reporter.go_back_to(int(state.step))
    return dataclasses.replace(state, guard=state.guard._replace(bad=taken.metrics["bad_steps"]))


def _what_was_bad(run: _Run, state: TrainState, taken: _Taken) -> str:
    loss, norm = (float(taken.metrics[name]) for name in ("loss", "grad_norm"))
    after = "Nothing of it was saved: lower optimizer.learning_rate, or set train.bad_steps to skip or rewind; run again to "
    after += "resume from the last checkpoint before it"
    if math.isfinite(loss) and math.isfinite(norm):
        usual = f"their running means are {float(state.guard.loss):.4g} and {float(state.guard.grad_norm):.4g}"
        limit = f"train.spike allows {run.config.train.spike:g} times these"
        return f"step {taken.step} is a spike (loss {loss:.4g}, gradient norm {norm:.4g}): {usual}, and {limit}. {after}"
    broken = sorted(nonfinite_tensors(run.config, run.mesh)(state, taken.batch), reverse=True)  # parameters, then gradients
    named = ", ".join(broken[:TENSORS_NAMED]) or "none of the tensors on its own"
    more = f" and {len(broken) - TENSORS_NAMED} more" if len(broken) > TENSORS_NAMED else ""
    return f"step {taken.step} is not finite (loss {loss}, gradient norm {norm}), in {named}{more}. {after}"


def _compile(run: _Run, state: TrainState) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The train step, compiled before the clock starts, with a line on the time and the memory that it takes."""
    began = time.monotonic()
    if run.compiled:
        step = compiled_step.load(run.compiled, run.config, run.mesh)
        run.reporter.say(f"loaded {run.compiled} in {time.monotonic() - began:.1f} s")
        return step
    lowered = make_train_step(run.config, run.mesh).lower(abstract_like(state), example_batch(run.config))
    compiled = lowered.compile()
    memory = compiled.memory_analysis()
    megabytes = memory.peak_memory_in_bytes / 1e6 if memory else math.nan
    run.reporter.say(f"compiled in {time.monotonic() - began:.1f} s; a step needs {megabytes:,.1f} MB on each device")
    return compiled


def _require_same_bits(step: int, first: Sums, second: Sums) -> None:
    first, second = jax.device_get((first, second))
    if differ := [name for name in first if int(first[name]) != int(second[name])]:
        raise UnreliableError(
            f"step {step} was computed twice, and {len(differ)} of {len(first)} arrays differ, {', '.join(differ[:3])} among "
            "them: a device computes wrongly. Nothing of it was saved. Find the device by running each host alone, and leave "
            "it out; the checkpoints since the last step that was computed twice may be wrong too"
        )


def _validate(run: _Run, state: TrainState, step: int) -> Mapping[str, float]:
    """The metrics of the parameters after `step`; none when the run has to stop in between."""
    with run.reporter.stopwatch.time("evaluation"):
        run.reporter.mark(step)
        run.reporter.say(f"step {step}: evaluating")
        try:
            params = state.averaged if run.config.validation.ema else state.params
            found = run.validate(params, step, run.stop.must_stop)
        except StoppedError:
            return NO_METRICS
    run.reporter.report_validation(step, found)
    return found


def _save_when_due(run: _Run, state: TrainState, taken: _Taken, metrics: Mapping[str, float]) -> None:
    """Saves in the workdir, or else on the host's disk; `metrics` are those of a validation."""
    settings, step = run.config.train, taken.step
    if step % settings.checkpoint_every == 0 or (metrics and settings.keep_best):
        _save(run, step, state, metrics)
    elif run.local and settings.local_every and step % settings.local_every == 0:
        _save_locally(run, run.local, step, state, taken)


def _save(run: _Run, step: int, state: TrainState, metrics: Mapping[str, float] = NO_METRICS) -> None:
    with run.reporter.stopwatch.time("save"):
        lanes = jax.make_array_from_process_local_data(sharding.batch_sharding(run.mesh), run.iterator.states)
        run.checkpoints.save(step, state, lanes, metrics)


def _save_locally(run: _Run, local: LocalCheckpoints, step: int, state: TrainState, taken: _Taken) -> None:
    if taken.metrics["is_bad"]:
        return
    with run.reporter.stopwatch.time("save"):
        lanes = jax.make_array_from_process_local_data(sharding.batch_sharding(run.mesh), run.iterator.states)
        local.save(step, run.checkpoints.arrays(state, lanes))


def make_iterator(config: Config, mesh: Mesh, processor: Processor, lanes: Lanes | None = None) -> TrainIterator:
    """Batches of this process's rows, from the beginning or from where `lanes` are."""
    states = None if lanes is None else sharding.to_own_rows(lanes)
    return make_train_iterator(config.data, processor, sharding.own_rows(mesh, config.data.rows), states)


def _meet(place: str) -> None:
    """Waits until all processes are here: a collective operation would give up after 30 s, on CPUs and GPUs."""
    multihost.sync_global_processes(place, timeout=_LONGEST_WAIT, processes=set(range(jax.process_count())))


def prepare_data(config: Config) -> None:
    """Builds data sets that are missing, held-out ones too."""
    wanted = [config.data, held_out(config)] if config.validation.sources else [config.data]
    if jax.process_index() == 0:
        for data in wanted:
            prepare_sources(data)
    _meet("data sets prepared")
    for data in wanted:
        prepare_sources(data)  # for hosts that do not share the first one's disk


def _write_run_files(config: Config, workdir: Path, processor: Processor, mesh: Mesh) -> None:
    """What a reader of the workdir needs to know about the run."""
    write_text(workdir / "config.json", json.dumps(dataclasses.asdict(config), indent=2) + "\n")
    write_text(workdir / "sharding.txt", "\n".join([*sharding.describe(abstract_run_params(config), mesh), ""]))
    processor.save(workdir)


def _say_what_runs(run: _Run, state: TrainState, start: int) -> None:
    device, steps = jax.devices()[0], run.config.train.steps
    axes = sharding.describe_mesh(run.mesh)
    frozen = count_params(split_params(state.params, trained_paths(run.config))[1])
    kept = f", {frozen:,} of them frozen" if frozen else ""
    run.reporter.say(f"{jax.device_count()} {device.platform} device(s) ({device.device_kind}), mesh {axes}")
    run.reporter.say(
        f"{count_params(state.params):,} parameters{kept}, listed with their sharding in {run.workdir / 'sharding.txt'}"
    )
    if start:
        run.reporter.say(f"resuming after step {start} of {steps}")


def _how_it_ended(run: _Run, step: int) -> tuple[str, str]:
    """In a word, and in a line."""
    steps = run.config.train.steps
    if step >= steps:
        return "finished", f"finished: step {step} of {steps}; everything is saved in {run.workdir}"
    how = f"stopped by {run.stop.received or 'a signal'}"
    return how, f"{how}: step {step} of {steps}; run the same command to resume"
