"""`train.py` as it is called, on the real data set: stopped, killed, resumed."""

import dataclasses
import json
import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest

from owl3_jax import sharding
from owl3_jax.convert.load import load_params
from owl3_jax.hlo import parse
from owl3_jax.host.command_line import load_config
from owl3_jax.training import compiled_step
from owl3_jax.training.profile import parts_of, read_events, times_by_part
from owl3_jax.training.step import abstract_state, example_batch, make_train_step
from tests.xla_flags import FAST_TO_COMPILE

SCRIPT = Path(__file__).parents[2] / "train.py"
STEPS = 100
CONFIG = """
from pathlib import Path

from owl3_jax.config import ComputeConfig, Config, DataConfig, ModelConfig, OptimizerConfig, TrainConfig, VisionConfig


def get_config():
    vision = VisionConfig(
        hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4
    )
    model = ModelConfig(
        vocab_size=97, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, hyper_layers=(1,), rope_theta=1e4, tie_word_embeddings=True, vision=vision,
    )
    data = DataConfig(data_dir=str(Path(__file__).parent / "data"), rows=2, tokens_per_row=149, images_per_row=8)
    return Config(
        model=model,
        compute=ComputeConfig(dtype="float32"),
        data=data,
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=5),
        train=TrainConfig(steps=%d, log_every=1, checkpoint_every=10, shift_pixels=1),
    )
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a config file, and the data and compiled programs of all runs."""
    place = tmp_path_factory.mktemp("train")
    (place / "tiny.py").write_text(CONFIG % STEPS)
    return place


def start(place: Path, workdir: Path, *further: str) -> subprocess.Popen[str]:
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(place / "compiled"),
        "XLA_FLAGS": FAST_TO_COMPILE,  # one device
    }
    command = [sys.executable, str(SCRIPT), f"--config={place / 'tiny.py'}", f"--workdir={workdir}", *further]
    return subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True)


def read_until(process: subprocess.Popen[str], step: int) -> str:
    """Reads the process's lines up to the first report on `step` or a later one."""
    lines = ""
    for line in process.stdout:
        lines += line
        if line.startswith("step ") and int(line.split("/")[0].removeprefix("step ")) >= step:
            return lines
    raise AssertionError(f"the run ended before step {step}:\n{lines}")


def resumed_step(printed: str) -> int:
    (line,) = [line for line in printed.splitlines() if line.startswith("resuming after step ")]
    return int(line.split()[3])


@pytest.fixture(scope="module")
def straight(place: Path) -> Path:
    """The workdir of a run that nothing happened to."""
    printed, _ = start(place, place / "straight").communicate(timeout=300)
    assert f"finished: step {STEPS} of {STEPS}" in printed
    return place / "straight"


def test_a_run_that_was_stopped_and_killed_ends_as_a_straight_one(place: Path, straight: Path) -> None:
    workdir = place / "interrupted"
    with start(place, workdir) as process:
        read_until(process, 3)
        process.send_signal(signal.SIGTERM)
        *_, last_line = process.communicate(timeout=300)[0].splitlines()
    assert process.returncode == 0
    assert last_line.startswith("stopped by SIGTERM: step ") and last_line.endswith("run the same command to resume")
    stopped_at = int(last_line.split()[4])

    with start(place, workdir) as process:
        printed = read_until(process, stopped_at + 15)
        process.kill()
        process.communicate()
    assert resumed_step(printed) == stopped_at
    assert process.returncode == -signal.SIGKILL

    printed, _ = start(place, workdir).communicate(timeout=300)
    assert stopped_at <= resumed_step(printed) < STEPS
    assert f"finished: step {STEPS} of {STEPS}" in printed
    assert parameters(place, workdir) == parameters(place, straight)
    assert losses(workdir) == losses(straight)
    assert [step for step, _ in losses(workdir)] == list(range(1, STEPS + 1))


def test_the_model_learns(straight: Path) -> None:
    values = [loss for _, loss in losses(straight)]
    assert np.mean(values[-10:]) < np.mean(values[:10]) - 0.1


def test_another_model_is_refused(place: Path, straight: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [f"--config={place / 'tiny.py'}", f"--workdir={straight}", "--config.model.form=static"]
    monkeypatch.setattr("sys.argv", ["train.py", *arguments])
    with pytest.raises(SystemExit, match=r"^error: checkpoint .*\n  model\.form: 'gated' there, 'static' in this run$"):
        runpy.run_path(str(SCRIPT), run_name="__main__")


def parameters(place: Path, workdir: Path) -> dict[str, bytes]:
    params = load_params(workdir, load_config(place / "tiny.py").model)
    return {jax.tree_util.keystr(path): leaf.tobytes() for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


def losses(workdir: Path) -> list[tuple[int, float]]:
    reports = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [(report["step"], report["loss"]) for report in reports]


class CompiledRun(NamedTuple):
    step: Path
    workdir: Path
    text: str  # of the compiled step
    printed: str


@pytest.fixture(scope="module")
def compiled_run(place: Path) -> CompiledRun:
    """A run of a step that was compiled here, for one device, and a profile of it."""
    steps = "--config.train.steps=3"
    config = load_config(place / "tiny.py")
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=3))
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    lowered = make_train_step(config, mesh).lower(abstract_state(config, mesh), example_batch(config))
    compiled = lowered.compile()
    step, workdir = place / "step", place / "of_step"
    compiled_step.save(step, config, mesh, compiled)
    printed, _ = start(place, workdir, steps, f"--compiled={step}", "--profile").communicate(timeout=300)
    return CompiledRun(step, workdir, compiled.as_text(), printed)


def test_a_step_that_was_compiled_before_is_run(compiled_run: CompiledRun) -> None:
    """Steps of other runs: tests/unit/training/test_compiled_step.py."""
    assert f"loaded {compiled_run.step}" in compiled_run.printed and "finished: step 3 of 3" in compiled_run.printed


def test_the_parts_of_the_model_are_found_in_its_profile(compiled_run: CompiledRun) -> None:
    """By name; tests/unit/training/test_profile.py has the times."""
    assert "where the time of steps 2 to 3 went" in compiled_run.printed
    (trace,) = (compiled_run.workdir / "profile").rglob("*.xplane.pb")
    times = times_by_part(read_events(trace, "jit_train_step"), parts_of(parse(compiled_run.text)))
    found = {part.name for part, seconds in times.items() if seconds > 0}
    layer = ("self_attn", "mlp", "norms")
    assert found >= {f"{tower}/layers/{name}" for tower in ("vision_model", "language_model") for name in layer}
    assert found >= {f"language_model/{name}" for name in ("layers/hyper_attention", "image_cache", "embed_tokens", "norm")}
    assert found >= {"vision_model/embeddings", "projector", "lm_head", "loss", "gradient_clip", "optimizer", "augmentation"}
    ways = {part.direction for part in times if part.name == "language_model/layers/mlp"}
    assert ways >= {"forward", "backward"}
