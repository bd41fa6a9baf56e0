"""The loop around a train step of two parameters, so that only the loop is tested; tests/e2e trains a real model."""

import dataclasses
import functools
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from checkpoint_damage import DAMAGES

from owl3_jax.batch import Batch
from owl3_jax.config import Config, ConfigError, DataConfig, SourceConfig, TrainConfig, ValidationConfig, load_json_tree
from owl3_jax.data.lanes import LaneState, Row, ahead_of
from owl3_jax.data.pipeline import JoinedRows, TrainIterator
from owl3_jax.data.skipped import Counts
from owl3_jax.host.signals import StoppedError
from owl3_jax.params import Params
from owl3_jax.sharding import batch_sharding, replicated
from owl3_jax.training import loop, resume
from owl3_jax.training.checkpoint import SavedRunError
from owl3_jax.training.loop import BadStepError, UnreliableError, train
from owl3_jax.training.step import TrainState
from tests import tiny
from tests.xla_flags import FAST_TO_COMPILE

REPOSITORY = Path(__file__).parents[3]
ROWS = 8
CONFIG = Config(
    model=dataclasses.replace(tiny.model_config(), vocab_size=97),
    data=DataConfig(rows=ROWS, tokens_per_row=3, images_per_row=1),
    train=TrainConfig(steps=23, log_every=5, checkpoint_every=7),
)
BROKEN_VALUE = 1_000_003


def make_batch(index: int, *, broken: frozenset[int] = frozenset(), rows: int = ROWS, offset: int = 0) -> Batch:
    value = BROKEN_VALUE if index in broken else index + offset
    text, image = np.full((rows, 3), value, np.int32), np.zeros((rows, 1), np.int32)
    return Batch(text, text, text, np.zeros((rows, 1, 11, 11, 3), np.uint8), image, image, np.ones((rows, 3), np.float32))


def numbered(
    config: DataConfig,
    processor: object,
    lanes: Sequence[int],
    states: np.ndarray | None,
    *,
    broken: frozenset[int] = frozenset(),
    before: Callable[[int], None] = lambda index: None,
    skipped: int = 0,
) -> TrainIterator:
    """Batch 1, 2, 3, ...; the second of several processes has 10 more in its rows. `before` is called with the number."""
    first = 0 if states is None else int(states[0, 0])
    offset = 10 if lanes[0] >= ROWS // 2 else 0
    counts = Counts.zeros(1)
    counts.array[0, 1] = skipped

    def state(index: int) -> np.ndarray:
        return LaneState(index, [], counts).to_array(ahead_of(config))

    def batches() -> Generator[JoinedRows, None, None]:
        for index in itertools.count(first + 1):
            before(index)
            row = make_batch(index, broken=broken, rows=1, offset=offset)
            yield JoinedRows.of([Row(row, state(index), ()) for _ in lanes])

    return TrainIterator(batches(), np.stack([state(first)] * len(lanes)), {"digits": 100.0}, CONFIG.data)


def take_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
    """A state that depends on every batch and on their order."""
    mean = batch.tokens.mean()
    finite = mean < BROKEN_VALUE
    params = {"w": jnp.where(finite, state.params["w"] * 1.25 + mean, state.params["w"]), "b": state.params["b"]}
    one = jnp.float32(1)
    loss = jnp.where(finite, mean, jnp.nan)
    is_bad, guard = state.guard.judge(loss, one, None)
    metrics = {"loss": loss, "is_bad": is_bad, "bad_steps": guard.bad, "accuracy": one, "target_tokens": one}
    metrics |= {"tokens": one, "images": one, "grad_norm": one, "learning_rate": one}
    return state.replace(step=state.step + 1, params=params, guard=guard), metrics


def make_train_step(config: Config, mesh: jax.sharding.Mesh) -> object:
    whole = replicated(mesh)
    return jax.jit(take_step, in_shardings=(whole, batch_sharding(mesh)), out_shardings=whole, donate_argnums=0)


def fresh_state() -> TrainState:
    return TrainState(jnp.int32(0), {"w": jnp.ones(7), "b": jnp.zeros(2)}, optax.EmptyState(), jax.random.key(0))


def init_state(config: Config, mesh: jax.sharding.Mesh) -> TrainState:
    return jax.jit(fresh_state, out_shardings=replicated(mesh))()


def abstract_state(config: Config, mesh: jax.sharding.Mesh) -> TrainState:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh)), fresh_state())


SMALL_PARTS = {
    "start_state": init_state,
    "abstract_state": lambda config, mesh, dtypes: abstract_state(config, mesh),
    "stored_dtypes": lambda workdir, step: {},
    "make_train_step": make_train_step,
    "nonfinite_tensors": lambda config, mesh: lambda state, batch: ["params/w", "grads/w"],
    "prepare_sources": lambda config: [],
    "make_train_iterator": numbered,
}


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_parts(monkeypatch)


def use_small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, part in SMALL_PARTS.items():
        for module in (loop, resume):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, part)


def with_train(**changes: object) -> Config:
    return dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, **changes))


def expected_w(steps: int, offset: int = 0) -> np.ndarray:
    state = fresh_state()
    for index in range(1, steps + 1):
        state, _ = jax.jit(take_step)(state, make_batch(index, offset=offset))
    return np.asarray(state.params["w"])


def logged(workdir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def saved_steps(workdir: Path) -> list[int]:
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def terminate_at(step: int) -> Callable[[int], None]:
    """Sends this process SIGTERM while that step is under way."""
    return lambda index: signal.raise_signal(signal.SIGTERM) if index == step else None


def test_all_steps_are_taken_reported_and_saved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = train(CONFIG, tmp_path)
    assert int(state.step) == 23
    np.testing.assert_array_equal(state.params["w"], expected_w(23))
    assert [line["step"] for line in logged(tmp_path)] == [5, 10, 15, 20, 23]
    assert logged(tmp_path)[0]["loss"] == 3.0  # the mean over steps 1 to 5
    assert saved_steps(tmp_path) == [21, 23]
    printed = capsys.readouterr().out
    for text in (
        "8 cpu device(s)",
        "mesh data 8 x fsdp 1",
        "9 parameters",
        "compiled in",
        "step 5/23  loss 3.0000",
        "finished: step 23",
    ):
        assert text in printed


def test_what_describes_the_run_lies_in_the_workdir(tmp_path: Path) -> None:
    train(CONFIG, tmp_path)
    assert load_json_tree(Config, json.loads((tmp_path / "config.json").read_text())) == CONFIG
    assert "language_model/embed_tokens" in (tmp_path / "sharding.txt").read_text()
    assert json.loads((tmp_path / "tokenizer.json").read_text())["model"]


@pytest.mark.parametrize("first", [7, 12])  # a multiple of checkpoint_every, and not
def test_a_longer_run_goes_on_where_a_shorter_one_ended(tmp_path: Path, first: int, capsys: pytest.CaptureFixture[str]) -> None:
    train(with_train(steps=first), tmp_path)
    capsys.readouterr()
    state = train(CONFIG, tmp_path)
    np.testing.assert_array_equal(state.params["w"], expected_w(23))
    assert f"resuming after step {first} of 23" in capsys.readouterr().out


def test_a_finished_run_is_left_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(CONFIG, tmp_path)
    before = logged(tmp_path)
    capsys.readouterr()
    state = train(CONFIG, tmp_path)
    np.testing.assert_array_equal(state.params["w"], expected_w(23))
    assert logged(tmp_path) == before
    printed = capsys.readouterr().out
    assert "finished: step 23 of 23" in printed
    assert "compiled" not in printed


def test_reports_past_the_last_checkpoint_are_dropped(tmp_path: Path) -> None:
    train(with_train(steps=7), tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 10, "loss": 99.0}\n')  # a run that was killed before its next checkpoint
    train(CONFIG, tmp_path)
    assert [line["step"] for line in logged(tmp_path)] == [5, 7, 10, 15, 20, 23]
    assert logged(tmp_path)[2]["loss"] == 9.0  # the mean over steps 8 to 10


def test_a_signal_ends_the_step_and_saves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(loop, "make_train_iterator", functools.partial(numbered, before=terminate_at(12)))
        state = train(CONFIG, tmp_path)
    assert int(state.step) == 12
    assert saved_steps(tmp_path) == [7, 12]
    assert "stopped by SIGTERM: step 12 of 23; run the same command to resume" in capsys.readouterr().out
    state = train(CONFIG, tmp_path)
    np.testing.assert_array_equal(state.params["w"], expected_w(23))


@pytest.mark.parametrize("broken", [1, 8, 14, 23])  # first; amid; at a checkpoint; last
def test_a_step_that_is_not_finite_stops_the_run_and_is_never_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: int
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(loop, "make_train_iterator", functools.partial(numbered, broken=frozenset([broken])))
        with pytest.raises(BadStepError, match=rf"^step {broken} is not finite \(loss nan, .* in params/w, grads/w\."):
            train(CONFIG, tmp_path)
    assert all(step < broken for step in saved_steps(tmp_path))
    state = train(CONFIG, tmp_path)  # with that batch repaired
    np.testing.assert_array_equal(state.params["w"], expected_w(23))


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    train(with_train(steps=12), tmp_path)
    assert saved_steps(tmp_path) == [7, 12]
    DAMAGES[damage](tmp_path / "checkpoints" / "12")
    capsys.readouterr()
    state = train(with_train(steps=16), tmp_path)
    np.testing.assert_array_equal(state.params["w"], expected_w(16))
    said = capsys.readouterr()
    assert "checkpoint 12 is passed over: cannot read checkpoint" in said.err and "resuming after step 7 of 16" in said.out
    assert saved_steps(tmp_path) == [14, 16]
    np.testing.assert_array_equal(train(CONFIG, tmp_path).params["w"], expected_w(23))


def with_bad_batches(monkeypatch: pytest.MonkeyPatch, *broken: int) -> None:
    monkeypatch.setattr(loop, "make_train_iterator", functools.partial(numbered, broken=frozenset(broken)))


def state_after(batches: Sequence[int]) -> np.ndarray:
    state = fresh_state()
    for index in batches:
        state, _ = jax.jit(take_step)(state, make_batch(index))
    return np.asarray(state.params["w"])


def test_bad_steps_are_skipped_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_bad_batches(monkeypatch, 9, 14, 15, 23)
    state = train(with_train(bad_steps="skip"), tmp_path)
    assert int(state.step) == 23 and int(state.guard.bad) == 4
    np.testing.assert_array_equal(state.params["w"], state_after([n for n in range(1, 23) if n not in (9, 14, 15)]))
    assert [line["bad_steps"] for line in logged(tmp_path)] == [0, 1, 3, 3, 4]


def test_too_many_bad_steps_stop_a_run_that_skips_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_bad_batches(monkeypatch, 9, 14, 15)
    config = with_train(bad_steps="skip", max_bad_steps=2)
    for _ in range(2):  # the second time from the last checkpoint, with its count
        with pytest.raises(BadStepError, match=r"^step 15 is the bad step number 3; train\.max_bad_steps allows 2\."):
            train(config, tmp_path)
    assert saved_steps(tmp_path) == [7, 14]


@pytest.mark.parametrize("broken", [9, 14, 23])  # amid; at a checkpoint; the last one
def test_a_run_goes_back_and_leaves_out_the_batches_since(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], broken: int
) -> None:
    with_bad_batches(monkeypatch, broken)
    state = train(with_train(bad_steps="rewind"), tmp_path)
    assert int(state.step) == 23 and int(state.guard.bad) == 1
    saved = 7 * ((broken - 1) // 7)
    dropped = broken if broken in (14, 23) else broken + 1  # the one after it runs already, unless it is waited for
    kept = [*range(1, saved + 1), *range(dropped + 1, dropped + 1 + 23 - saved)]
    np.testing.assert_array_equal(state.params["w"], state_after(kept))
    assert f"back to step {saved}, leaving out the batches since then" in capsys.readouterr().out
    assert [line["step"] for line in logged(tmp_path)] == [5, 10, 15, 20, 23]


def test_a_run_that_went_back_resumes_as_if_it_had_not_been_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_bad_batches(monkeypatch, 9)
    straight = train(with_train(bad_steps="rewind"), tmp_path / "straight")
    for steps in (7, 12):  # before the bad batch, and after the next checkpoint
        train(with_train(bad_steps="rewind", steps=steps), tmp_path / "stopped")
    state = train(with_train(bad_steps="rewind"), tmp_path / "stopped")
    np.testing.assert_array_equal(state.params["w"], straight.params["w"])
    assert int(state.guard.bad) == 1


def test_without_a_checkpoint_a_run_goes_back_to_its_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_bad_batches(monkeypatch, 3)
    state = train(with_train(bad_steps="rewind"), tmp_path)
    np.testing.assert_array_equal(state.params["w"], state_after(range(5, 28)))


def test_a_run_does_not_go_back_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_bad_batches(monkeypatch, *range(9, 1000))
    with pytest.raises(BadStepError, match=r"train\.max_bad_steps allows 5"):
        train(with_train(bad_steps="rewind", max_bad_steps=5), tmp_path)


def test_a_step_that_gives_other_bits_when_it_is_repeated_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = itertools.count()

    def make_step_checksums(config: Config, mesh: jax.sharding.Mesh) -> Callable[..., dict[str, np.ndarray]]:
        unsteady = lambda: {
            "params.w": jnp.uint32(max(0, next(calls) - 6)),
            "params.b": jnp.uint32(1),
        }  # the fourth pair differs
        return lambda state, batch: unsteady()

    monkeypatch.setattr(loop, "make_step_checksums", make_step_checksums)
    with pytest.raises(UnreliableError, match=r"^step 12 was computed twice, and 1 of 2 arrays differ, params\.w among them"):
        train(with_train(repeat_every=3), tmp_path)
    assert saved_steps(tmp_path) == [7]


class FakeValidation:
    """Its loss is lowest after step 9. It notes which steps it was asked about."""

    asked: ClassVar[list[int]] = []
    given: ClassVar[list[float]] = []  # the parameter w that it had to evaluate

    def __init__(self, config: Config, *others: object) -> None:
        self._every = config.validation.every

    def is_due(self, step: int) -> bool:
        return step % self._every == 0

    def __call__(self, params: Params, step: int, must_stop: Callable[[], bool]) -> dict[str, float]:
        self.asked.append(step)
        self.given.append(float(params["w"][0]))
        if must_stop():
            raise StoppedError
        return {"heldout/loss": abs(step - 9) + 0.5}


def with_validation(monkeypatch: pytest.MonkeyPatch, **changes: object) -> Config:
    monkeypatch.setattr(loop, "Validation", FakeValidation)
    FakeValidation.asked.clear()
    FakeValidation.given.clear()
    validation = ValidationConfig(every=3, sources=(SourceConfig("digits"),))
    config = dataclasses.replace(CONFIG, validation=validation)
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **changes))


def test_what_is_found_on_the_way_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train(with_validation(monkeypatch), tmp_path)
    found = {line["step"]: line["heldout/loss"] for line in logged(tmp_path) if "heldout/loss" in line}
    assert found == {step: abs(step - 9) + 0.5 for step in range(3, 24, 3)}
    assert "step 12: heldout/loss 3.5" in capsys.readouterr().out


@pytest.mark.parametrize("ema", [False, True])
def test_the_moving_average_is_evaluated_where_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ema: bool
) -> None:
    config = with_validation(monkeypatch, steps=6, ema_decay=0.5)
    config = dataclasses.replace(config, validation=dataclasses.replace(config.validation, ema=ema))
    average = lambda mesh: {"w": jax.device_put(jnp.full(7, -1.0), replicated(mesh))}
    monkeypatch.setattr(loop, "start_state", lambda config, mesh: init_state(config, mesh).replace(ema=average(mesh)))
    train(config, tmp_path)
    assert FakeValidation.given == ([-1.0, -1.0] if ema else [float(expected_w(step)[0]) for step in (3, 6)])


def test_the_best_checkpoint_is_kept_beside_the_last_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = with_validation(monkeypatch, keep_best="heldout/loss")
    train(dataclasses.replace(config, train=dataclasses.replace(config.train, steps=12)), tmp_path)
    assert saved_steps(tmp_path) == [9, 12]
    train(config, tmp_path)  # which knows the best one from its file
    assert saved_steps(tmp_path) == [9, 21, 23]


def test_every_so_many_steps_a_checkpoint_is_kept_for_good(tmp_path: Path) -> None:
    train(with_train(keep_every=14, steps=40), tmp_path)
    assert saved_steps(tmp_path) == [14, 28, 35, 40]


def test_an_interrupted_evaluation_is_made_up_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = with_validation(monkeypatch)
    with monkeypatch.context() as patched:
        patched.setattr(loop, "make_train_iterator", functools.partial(numbered, before=terminate_at(6)))
        state = train(config, tmp_path)
    assert int(state.step) == 6 and FakeValidation.asked == [3, 6]
    state = train(config, tmp_path)
    assert FakeValidation.asked == [3, 6, *range(6, 24, 3)]
    assert [line["step"] for line in logged(tmp_path) if "heldout/loss" in line] == list(range(3, 24, 3))
    np.testing.assert_array_equal(state.params["w"], expected_w(23))


class KilledError(Exception):
    pass


def killed_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(index: int) -> None:
        if index == step:
            raise KilledError

    monkeypatch.setattr(loop, "make_train_iterator", functools.partial(numbered, before=die))


def with_local_tier(folder: Path, **changes: object) -> Config:
    return with_train(local_folder=str(folder / "disk"), local_every=2, **changes)


def local_steps(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in (folder / "disk").glob("*/process_0/*") if path.name.isdecimal())


def test_checkpoints_on_the_own_disk_are_newer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = with_local_tier(tmp_path)
    with monkeypatch.context() as patched, pytest.raises(KilledError):
        killed_at(12, patched)
        train(config, tmp_path / "run")
    assert saved_steps(tmp_path / "run") == [7] and local_steps(tmp_path) == [8, 10]
    state = train(config, tmp_path / "run")
    assert "resuming after step 10 of 23" in capsys.readouterr().out
    np.testing.assert_array_equal(state.params["w"], expected_w(23))
    assert [line["step"] for line in logged(tmp_path / "run")] == [5, 10, 15, 20, 23]


def damage_local(folder: Path) -> None:
    for path in folder.glob("disk/*/process_0/10/**/d/*"):
        path.write_bytes(b"")


@pytest.mark.parametrize(
    ("spoil", "resumed"),
    [
        (damage_local, 8),
        (lambda folder: shutil.rmtree(folder / "disk"), 7),  # another host
        (lambda folder: shutil.rmtree(folder / "run"), 0),  # a new run in the same place
    ],
    ids=["damaged", "gone", "of a run that is gone"],
)
def test_a_run_does_without_the_checkpoints_on_its_disk(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[Path], None],
    resumed: int,
) -> None:
    config = with_local_tier(tmp_path)
    with monkeypatch.context() as patched, pytest.raises(KilledError):
        killed_at(12, patched)
        train(config, tmp_path / "run")
    spoil(tmp_path)
    capsys.readouterr()
    state = train(config, tmp_path / "run")
    assert (f"resuming after step {resumed} of 23" in capsys.readouterr().out) == bool(resumed)
    np.testing.assert_array_equal(state.params["w"], expected_w(23))


def test_checkpoints_on_the_disk_of_other_settings_are_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the workdir are refused in words (`test_another_model_is_refused...`)."""
    config = with_local_tier(tmp_path, checkpoint_every=1000)
    with monkeypatch.context() as patched, pytest.raises(KilledError):
        killed_at(12, patched)
        train(config, tmp_path / "run")
    other = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, name="sgd", b2=0.95))
    assert local_steps(tmp_path) == [8, 10]
    state = train(dataclasses.replace(other, train=dataclasses.replace(other.train, steps=1)), tmp_path / "run")
    assert int(state.step) == 1


def test_a_local_disk_that_is_full_does_not_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(ocp.args, "PyTreeSave", fail)
    state = train(with_local_tier(tmp_path), tmp_path / "run")
    np.testing.assert_array_equal(state.params["w"], expected_w(23))
    assert capsys.readouterr().err.count("local checkpoints are given up: no space left on device") == 1


def test_without_a_readable_checkpoint_nothing_is_trained(tmp_path: Path) -> None:
    train(with_train(steps=12), tmp_path)
    for step in (7, 12):
        shutil.rmtree(tmp_path / "checkpoints" / str(step) / "params")
    with pytest.raises(SavedRunError, match=r"cannot read checkpoint .*12"):
        train(CONFIG, tmp_path)
    assert saved_steps(tmp_path) == [7, 12]


def test_a_long_list_of_tensors_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"grads/{number:02}" for number in range(13)]
    monkeypatch.setattr(loop, "nonfinite_tensors", lambda config, mesh: lambda state, batch: names)
    monkeypatch.setattr(loop, "make_train_iterator", functools.partial(numbered, broken=frozenset([2])))
    with pytest.raises(BadStepError, match=r"in grads/12, .*grads/05 and 5 more\."):
        train(CONFIG, tmp_path)


def test_a_vocabulary_that_is_too_small_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.vocab_size 31 is too small"):
        train(dataclasses.replace(CONFIG, model=tiny.model_config()), tmp_path)


def test_another_model_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    train(CONFIG, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    other = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, form="joint"))
    with pytest.raises(SavedRunError, match=r"model\.form: 'gated' there, 'joint' in this run"):
        train(other, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_metrics_are_fetched_one_step_late_and_otherwise_only_for_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`is_bad` of a step is looked at after the next one was sent to the device."""
    events: list[str] = []

    def noting(function: Callable[..., object], event: Callable[..., str]) -> Callable[..., object]:
        def noted(*args: object) -> object:
            events.append(event(*args))
            return function(*args)

        return noted

    monkeypatch.setattr(loop, "_is_undone", noting(loop._is_undone, lambda run, state, taken: f"check {taken and taken.step}"))
    monkeypatch.setattr(loop.Reporter, "report", noting(loop.Reporter.report, lambda reporter, step: f"report {step}"))
    monkeypatch.setattr(
        loop.sharding, "shard_batch", noting(loop.sharding.shard_batch, lambda batch, mesh: f"send {batch.tokens[0, 0]}")
    )
    train(with_train(steps=4, log_every=3), tmp_path)
    assert events == [
        "send 1",
        "check None",
        "send 2",
        "check 1",
        "send 3",
        "check 2",
        "report 3",
        "send 4",
        "check 3",
        "check 4",
        "report 4",
        "check 4",
    ]


def test_skipped_samples_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "make_train_iterator", functools.partial(numbered, skipped=1))
    train(with_train(steps=5), tmp_path)
    assert logged(tmp_path)[0]["skipped_samples"] == ROWS


ONE_OF_TWO_PROCESSES = """
import functools, sys, time
from pathlib import Path
import jax
address, index, workdir = sys.argv[1:]
jax.distributed.initialize(address, num_processes=2, process_id=int(index))
from tests.unit.training import test_loop as parts
vars(parts.loop).update(parts.SMALL_PARTS)
vars(parts.resume).update(parts.SMALL_PARTS)
if index == "1":
    parts.loop.make_train_iterator = functools.partial(parts.numbered, before=parts.terminate_at(12))
else:
    parts.loop.make_train_iterator = functools.partial(parts.numbered, before=lambda index: time.sleep(0.02))
parts.train(parts.with_train(steps=1000), Path(workdir))
"""


def test_two_processes_train_together_and_stop_at_the_same_step(tmp_path: Path) -> None:
    """Each reads its own rows; the signal reaches the second only, and both stop at a step that they agree on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = os.environ | {"PYTHONPATH": ".:tools", "XLA_FLAGS": FAST_TO_COMPILE}  # one device each
    run = functools.partial(subprocess.Popen, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True)
    processes = [run([sys.executable, "-c", ONE_OF_TWO_PROCESSES, address, str(index), str(tmp_path)]) for index in range(2)]
    printed = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert "2 cpu device(s)" in printed[0] and "stopped by a signal: step" in printed[0]
    assert [line for line in printed[1].splitlines() if not line.startswith("[Gloo]")] == []
    last = max(saved_steps(tmp_path))
    assert 12 <= last < 1000 and f"stopped by a signal: step {last} of 1000; run the same command" in printed[0]
    params = ocp.StandardCheckpointer().restore(tmp_path / "checkpoints" / str(last) / "params", fresh_state().params)
    np.testing.assert_array_equal(params["w"], expected_w(last, offset=5))
