"""Checkpoints of a state that is only a few arrays: nothing here depends on the model."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from owl3_jax.config import Config, DataConfig, MeshConfig, TrainConfig
from owl3_jax.sharding import make_mesh, to_own_rows
from owl3_jax.training import checkpoint
from owl3_jax.training.checkpoint import Checkpoints, SavedRunError, config_differences
from owl3_jax.training.step import TrainState
from tests import tiny
from tests.full_disk import room_for

CONFIG = Config(model=tiny.model_config(), data=DataConfig(rows=8, tokens_per_row=13), train=TrainConfig(checkpoints_to_keep=2))
# Reads and writes that orbax has given up, after an error, still report to its closed event loop.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

REPOSITORY = Path(__file__).parents[3]


def make_state(value: float, size: int = 7) -> TrainState:
    params = {"w": jnp.full((size, 3), value), "b": jnp.arange(5.0) * value}
    return TrainState(jnp.int32(value), params, optax.adam(0.1).init(params), jax.random.key(int(value)))


def make_lanes(seed: int = 0) -> jax.Array:
    return jax.random.randint(jax.random.key(seed), (8, 5), 0, 2**30, jnp.int32)


def abstract(state: TrainState) -> TrainState:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def restore(workdir: Path, like: TrainState) -> tuple[int | None, TrainState]:
    with Checkpoints(workdir, CONFIG) as checkpoints:
        step = max(checkpoints.steps())
        return step, checkpoints.restore(step, abstract(like), abstract(make_lanes()))[0]


def assert_equal(tree: object, other: object) -> None:
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    raw = lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    for one, two in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        assert one.dtype == two.dtype
        np.testing.assert_array_equal(raw(one), raw(two))


def test_all_of_the_state_and_the_place_in_the_data_come_back(tmp_path: Path) -> None:
    state, lanes = make_state(11), make_lanes(3)
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        checkpoints.save(11, state, lanes)
    split = jax.sharding.NamedSharding(make_mesh(MeshConfig(data=4, fsdp=2)), jax.sharding.PartitionSpec(("data", "fsdp")))
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        assert checkpoints.steps() == [11]
        restored, restored_lanes = checkpoints.restore(11, abstract(state), abstract(jax.device_put(lanes, split)))
    assert_equal(restored, state)
    assert restored_lanes.sharding == split
    np.testing.assert_array_equal(restored_lanes, lanes)
    np.testing.assert_array_equal(to_own_rows(restored_lanes), lanes)


def test_arrays_come_back_in_the_shardings_asked_for(tmp_path: Path) -> None:
    state = make_state(2, size=8)
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        checkpoints.save(2, state, make_lanes())
    mesh = make_mesh(MeshConfig(data=2, fsdp=4))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    shardings = jax.tree.map(lambda x: split if x.shape == (8, 3) else whole, state)
    _, restored = restore(tmp_path, jax.device_put(state, shardings))
    assert restored.params["w"].sharding == split
    assert restored.params["b"].sharding == whole
    assert_equal(jax.device_get(restored.params), jax.device_get(state.params))


def test_training_may_overwrite_the_arrays_while_they_are_saved(tmp_path: Path) -> None:
    state = make_state(5, size=1_000_003)
    double = jax.jit(lambda tree: jax.tree.map(lambda x: x * 2, tree), donate_argnums=0)
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        checkpoints.save(5, state, make_lanes())
        params = state.params
        for _ in range(3):
            params = double(params)
        jax.block_until_ready(params)
    _, restored = restore(tmp_path, make_state(0, size=1_000_003))
    assert_equal(restored, make_state(5, size=1_000_003))


def test_only_the_last_ones_are_kept(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        for step in (1, 2, 3, 5):
            checkpoints.save(step, make_state(step), make_lanes())
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["3", "5"]


def test_a_step_is_saved_once(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        checkpoints.save(3, make_state(3), make_lanes())
        checkpoints.save(3, make_state(4), make_lanes())
    _, restored = restore(tmp_path, make_state(0))
    assert_equal(restored, make_state(3))


def test_a_new_workdir_has_no_checkpoint(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        assert checkpoints.steps() == []
        checkpoints.check_same_run()


# ---- a checkpoint of something else


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        checkpoints.save(3, make_state(3), make_lanes())
    return tmp_path


def replaced(section: str, **changes: object) -> Config:
    return dataclasses.replace(CONFIG, **{section: dataclasses.replace(getattr(CONFIG, section), **changes)})


@pytest.mark.parametrize(
    ("config", "lines"),
    [
        (
            replaced("model", num_hidden_layers=7, rope_theta=2e4),
            ["model.num_hidden_layers: 5 there, 7 in this run", "rope_theta"],
        ),
        (
            replaced("model", vision=dataclasses.replace(CONFIG.model.vision, image_size=12)),
            ["model.vision.image_size: 11 there, 12"],
        ),
        (replaced("data", rows=16), ["data.rows: 8 there, 16 in this run"]),
        (
            replaced("processor", tokenizer="other.json", style="plain", media_style="markers", crop=True),
            [
                "processor.tokenizer: 'digits' there, 'other.json' in this run",
                "processor.style: 'chatml' there, 'plain' in this run",
                "processor.media_style: 'words' there, 'markers' in this run",
                "processor.crop: False there, True in this run",
            ],
        ),
    ],
)
def test_a_checkpoint_of_another_model_or_other_data_is_refused_and_left_alone(
    saved: Path, config: Config, lines: list[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in saved.rglob("*")}
    with Checkpoints(saved, config) as checkpoints, pytest.raises(SavedRunError) as error:
        checkpoints.check_same_run()
    assert "checkpoints/3 does not fit this run; use its settings, or another workdir" in str(error.value)
    assert [line for line in lines if line not in str(error.value)] == []
    assert {path: path.stat().st_mtime_ns for path in saved.rglob("*")} == before


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        replaced("train", steps=5000),
        replaced("optimizer", clip_norm=2.0),
        replaced("data", data_dir="elsewhere", prefetch=1),
    ],
)
def test_settings_that_change_neither_model_nor_batches_may_differ(saved: Path, config: Config) -> None:
    with Checkpoints(saved, config) as checkpoints:
        checkpoints.check_same_run()


def rewrite_run_file(workdir: Path, change: Callable[[dict], object]) -> None:
    path = workdir / "checkpoints" / "3" / "run" / "metadata"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_a_checkpoint_with_unknown_settings_is_of_another_version(saved: Path) -> None:
    rewrite_run_file(saved, lambda run: run["config"].update(future={}))
    with Checkpoints(saved, CONFIG) as checkpoints, pytest.raises(SavedRunError, match=r"another version.*no field future"):
        checkpoints.check_same_run()


def test_a_checkpoint_from_before_there_were_processor_settings_has_the_default_ones(saved: Path) -> None:
    rewrite_run_file(saved, lambda run: run["config"].pop("processor"))
    with Checkpoints(saved, CONFIG) as checkpoints:
        checkpoints.check_same_run()
    with Checkpoints(saved, replaced("processor", crop=True)) as checkpoints, pytest.raises(SavedRunError) as error:
        checkpoints.check_same_run()
    assert "processor.crop: False there, True in this run" in str(error.value)


def test_a_damaged_checkpoint_is_named(saved: Path) -> None:
    (saved / "checkpoints" / "3" / "progress" / "manifest.ocdbt").write_bytes(b"damaged")
    with pytest.raises(SavedRunError, match=r"cannot read checkpoint .*checkpoints/3: "):
        restore(saved, make_state(3))


def test_differences_of_sections() -> None:
    other = replaced("model", hyper_layers=(1, 3))
    assert config_differences(CONFIG, other, "model", "data") == ["model.hyper_layers: (2, 5) there, (1, 3) in this run"]
    assert config_differences(CONFIG, other, "data") == []


# ---- saves that fail


def random_state(step: int, size: int) -> TrainState:
    noise = jax.random.normal(jax.random.key(step), (size, 3))  # does not compress
    return make_state(step, size).replace(params={"w": noise, "b": jnp.zeros(5)})


def ask_until_it_fails(checkpoints: Checkpoints) -> None:
    for _ in range(1000):
        checkpoints.check_for_errors()  # does not wait
        time.sleep(0.01)


@pytest.mark.parametrize(
    "notice",
    [Checkpoints.wait, ask_until_it_fails, lambda checkpoints: checkpoints.save(3, random_state(3, 7), make_lanes())],
    ids=["waiting", "asking", "saving again"],
)
def test_a_save_that_finds_no_room_is_an_error_and_the_last_one_stays(
    tmp_path: Path, notice: Callable[[Checkpoints], None]
) -> None:
    config = replaced("train", checkpoints_to_keep=1)
    message = r"could not write .*File too large.*If the disk is full, make room\. The last complete checkpoint is step 1"
    with Checkpoints(tmp_path, config) as checkpoints:
        checkpoints.save(1, random_state(1, 100_003), make_lanes())
        checkpoints.wait()
        with room_for(100_000):
            checkpoints.save(2, random_state(2, 100_003), make_lanes())
            with pytest.raises(SavedRunError, match=message):
                notice(checkpoints)
    step, restored = restore(tmp_path, random_state(0, 100_003))
    assert step == 1
    assert_equal(restored, random_state(1, 100_003))


def test_a_failed_save_is_reported_without_orbax_tracebacks(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(SavedRunError), room_for(100_000), Checkpoints(tmp_path, CONFIG) as checkpoints:
        checkpoints.save(2, random_state(2, 100_003), make_lanes())
    assert "Traceback" not in caplog.text


SAVES_TWICE = """
import sys
from pathlib import Path
from tests.unit.training.test_checkpoint import CONFIG, Checkpoints, make_lanes, random_state

with Checkpoints(Path(sys.argv[1]), CONFIG) as checkpoints:
    checkpoints.save(1, random_state(1, 7), make_lanes())
    checkpoints.wait()
    checkpoints.save(2, random_state(2, 10_000_019), make_lanes())
"""


def test_with_an_error_a_save_with_others_is_not_waited_for_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others, which have to take part in it, may wait for this process in a step."""
    monkeypatch.setattr(checkpoint, "_LONGEST_END", 0.2)
    checkpoints = Checkpoints(tmp_path, CONFIG)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(checkpoints._manager, "close", threading.Event().wait)
    with pytest.raises(KeyError), checkpoints:
        raise KeyError


def test_a_process_killed_during_a_save_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    directory = tmp_path / "checkpoints"
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen([sys.executable, "-c", SAVES_TWICE, str(tmp_path)], cwd=REPOSITORY, env=environment) as process:
        while process.poll() is None and not list(directory.glob("2*/params*/**/d/*")):
            time.sleep(0.001)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert [path.name for path in directory.glob("2*")] != ["2"], "the save was complete before the process was killed"

    step, restored = restore(tmp_path, random_state(0, 7))
    assert step == 1
    assert_equal(restored, random_state(1, 7))
    with Checkpoints(tmp_path, CONFIG) as checkpoints:  # and the run goes on from there
        checkpoints.save(2, random_state(2, 7), make_lanes())
    assert sorted(path.name for path in directory.iterdir()) == ["1", "2"]
