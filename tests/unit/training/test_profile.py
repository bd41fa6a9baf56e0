"""Times of parts from events made by hand, names of parts from steps that were really compiled and traced."""

import contextlib
import io
import multiprocessing
import re
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest

from owl3_jax.batch import Batch
from owl3_jax.config import ConfigError, TrainConfig
from owl3_jax.hlo import parse
from owl3_jax.training import loop
from owl3_jax.training.profile import (
    OTHER,
    Event,
    Part,
    format_table,
    part_of,
    parts_of,
    read_events,
    steps_to_profile,
    table_rows,
    times_by_part,
)
from owl3_jax.training.step import TrainState
from tests.unit.training import test_loop


def scanned_step(x: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A product in a scan whose body is computed again for its gradients, then an update that has none."""

    def layer(x: jax.Array, w: jax.Array) -> tuple[jax.Array, None]:
        with jax.named_scope("decoder_layer"), jax.named_scope("mlp"):
            return jnp.tanh(x @ w), None

    def loss(weights: jax.Array) -> jax.Array:
        out, _ = jax.lax.scan(jax.checkpoint(layer, prevent_cse=False), x, weights)
        with jax.named_scope("loss"):
            return jnp.square(out).sum()

    value, grads = jax.value_and_grad(loss)(weights)
    with jax.named_scope("optimizer"):
        return value, weights - 0.1 * grads


def test_the_instructions_of_a_compiled_step_are_of_the_scopes_around_them() -> None:
    compiled = jax.jit(scanned_step).lower(jnp.ones((17, 19)), jnp.ones((3, 19, 19))).compile()
    parts = parts_of(parse(compiled.as_text()))
    mlp = "language_model/layers/mlp"
    assert {Part(mlp, "forward"), Part(mlp, "backward"), Part(mlp, "recomputed"), Part("optimizer", "")} <= set(parts.values())
    assert {part.name for part in parts.values()} == {mlp, "loss", "optimizer"}


UNNAMED = """\
HloModule jit_step, is_scheduled=true

%fused (p: f32[4]) -> f32[4] {
  %p = f32[4]{0} parameter(0)
  %tanh = f32[4]{0} tanh(%p), metadata={op_name="jit(step)/jvp(loss)/tanh"}
  ROOT %copied = f32[4]{0} copy(%tanh)
}

%body (s: (s32[], f32[4])) -> (s32[], f32[4]) {
  %s = (s32[], f32[4]{0}) parameter(0)
  %fusion = f32[4]{0} fusion(%s), kind=kLoop, calls=%fused
  %copy.1 = f32[4]{0} copy(%fusion)
  ROOT %add = f32[4]{0} add(%copy.1, %fusion), metadata={op_name="jit(step)/transpose(jvp(image_cache))/add"}
}

ENTRY %main (x: f32[4]) -> f32[4] {
  %x = f32[4]{0} parameter(0), metadata={op_name="x"}
  %while = (s32[], f32[4]{0}) while(%x), condition=%c, body=%body, metadata={op_name="jit(step)/jvp(M.f)/siglip/while"}
  ROOT %copy.2 = f32[4]{0} copy(%while)
}
"""


def test_instructions_without_a_name_are_of_what_they_fuse_or_what_calls_them() -> None:
    parts = parts_of(parse(UNNAMED))
    vision, loss = Part("vision_model", "forward"), Part("loss", "forward")
    assert (parts["while"], parts["fusion"], parts["copy.1"]) == (vision, loss, vision)
    assert parts["add"] == Part("language_model/image_cache", "backward")
    assert "copy.2" not in parts and "x" not in parts


def test_an_operation_that_transposes_is_not_the_backward_pass() -> None:
    found = part_of("jit(train_step)/jvp(Owl3.f)/language_model/while/body/layers/decoder_layer/self_attn/q_proj/transpose")
    assert found == Part("language_model/layers/self_attn", "forward")


A, B, C = (Part(name, "forward") for name in "ABC")


def event(line: str, instruction: str, start: float, end: float, device: str = "0") -> Event:
    return Event(device, line, instruction, start * 1e9, end * 1e9)


def test_nested_events_count_once_and_lines_share_the_moments_that_both_are_busy() -> None:
    """Seconds 0 to 10 are a loop (A) around two runs of its body (B), then nothing, then something else; from 5 to 8 another
    line runs C, so that half of that time is C's."""
    parts = {"while": A, "body": B, "dot": C}
    events = [
        event("1", "body", 1, 4),
        event("1", "while", 0, 10),
        event("1", "body", 6, 9),
        event("2", "dot", 5, 8),
        event("1", "unknown", 12, 13),
    ]
    times = times_by_part(events, parts)
    assert times == pytest.approx({A: 1 + 1 + 1 + 0.5, B: 3 + 1 + 1, C: 1.5, OTHER: 1})
    rows = table_rows(times, seconds=14.0, steps=2)
    assert sum(row.share for row in rows) == pytest.approx(1)
    assert [(row.name, row.seconds) for row in rows] == [("B", 2.5), ("A", 1.75), ("C", 0.75), ("other", 0.5), ("idle", 1.5)]


def test_devices_count_as_their_mean() -> None:
    events = [event("1", "dot", 0, 4), event("1", "dot", 3, 5, device="1")]
    assert times_by_part(events, {"dot": C}) == pytest.approx({C: 3})


def test_the_table_has_the_largest_parts_and_the_sum_of_all_others() -> None:
    times = {Part(f"part {number}", way): 0.5 * number for number in range(1, 6) for way in ("forward", "backward")}
    rows = table_rows(times, seconds=30.0, steps=1, largest=3)
    assert [row.name for row in rows] == ["part 5", "part 4", "part 3", "2 smaller parts", "other", "idle"]
    assert dict(rows[3].by_direction) == {"forward": 1.5, "backward": 1.5} and rows[3].share == pytest.approx(3 / 30)
    first, *_, last = format_table(rows)
    assert first.split() == ["part", "ms", "a", "step", "share", "forward", "backward", "recomputed"]
    assert last.split() == ["step", "30000.0", "100.0%"]


@pytest.mark.parametrize(
    ("steps", "problem"),
    [
        ("10", 'must be like "10:13"'),
        ("10:", 'must be like "10:13"'),
        ("-1:3", 'must be like "10:13"'),
        ("0:3", "counted from 1"),
        ("3:3", "the first number must be below the second"),
        ("21:23", r"begins after the last step, train\.steps=20"),
    ],
)
def test_wrong_steps_are_refused(steps: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        TrainConfig(steps=20, profile_steps=steps)


@pytest.mark.parametrize(
    ("total", "chosen", "done", "profiled"),
    [
        (20, "10:13", 0, [10, 11, 12]),
        (20, "19:30", 0, [19, 20]),
        (20, "10:13", 10, [11, 12]),
        (20, "10:13", 12, []),
        (20, None, 0, [5, 6, 7]),
        (20, None, 10, [15, 16, 17]),
        (6, None, 0, [4, 5, 6]),
        (3, None, 0, [2, 3]),
        (2, None, 0, [2]),
    ],
)
def test_which_steps_are_profiled(total: int, chosen: str | None, done: int, profiled: list[int]) -> None:
    config = TrainConfig(steps=total, profile_steps=chosen)
    assert list(steps_to_profile(config, done, wanted=True)) == profiled
    assert list(steps_to_profile(config, done, wanted=False)) == (profiled if chosen else [])


def test_a_run_of_one_step_has_nothing_to_profile() -> None:
    with pytest.raises(ConfigError, match=r"train\.steps=7 leaves 1 after step 6"):
        steps_to_profile(TrainConfig(steps=7), 6, wanted=True)


PLAIN_STEP = test_loop.take_step


def take_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
    """The loop's test step, and something that takes longer."""
    with jax.named_scope("projector"):
        waves = jnp.sin(jnp.arange(5_000) * batch.tokens.mean())
    with jax.named_scope("optimizer"):
        state, metrics = PLAIN_STEP(state, batch)
    return state, metrics | {"grad_norm": waves.mean()}


class Profiled(NamedTuple):
    """What a profiled run has left."""

    printed: str
    devices: set[str]
    parts: set[str]  # that took time
    expected_devices: set[str]


def profiled_run(workdir: Path) -> Profiled:
    steps: list[jax.stages.Compiled] = []
    compile_step = loop._compile
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as monkeypatch, contextlib.redirect_stdout(printed):
        test_loop.use_small_parts(monkeypatch)
        monkeypatch.setattr(test_loop, "take_step", take_step)
        monkeypatch.setattr(loop, "_compile", lambda run, state: steps.append(compile_step(run, state)) or steps[0])
        loop.train(test_loop.with_train(steps=6, profile_steps="3:5"), workdir, profile=True)
    (trace,) = (workdir / "profile").rglob("*.xplane.pb")
    events = list(read_events(trace, "jit_take_step"))
    parts = {part.name for part, seconds in times_by_part(events, parts_of(parse(steps[0].as_text()))).items() if seconds > 0}
    expected = {f"/host:CPU {device.id}" for device in jax.devices()}
    return Profiled(printed.getvalue(), {event.device for event in events}, parts, expected)


def test_profiled_steps_leave_a_trace_and_a_table(tmp_path: Path) -> None:
    """On eight devices, in a process of its own as real runs are: in one that had run a thousand other programs, JAX's profiler
    crashed. tests/e2e/test_train.py has the table of a real model."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        printed, devices, parts, expected_devices = process.submit(profiled_run, tmp_path).result()
    assert f"profile of steps 3 to 4 saved in {tmp_path / 'profile'}" in printed
    assert devices == expected_devices and len(devices) == jax.device_count()
    assert {"projector", "optimizer"} <= parts
    table = printed.partition("where the time of steps 3 to 4 went")[2].splitlines()[1:]
    names, shares = zip(*[re.match(r"(.*?)  +[\d.]+ +([\d.]+)%", line).groups() for line in table[1:-1]], strict=True)
    assert {"projector", "optimizer"} < set(names) and names[-3:] == ("other", "idle", "step")
    assert sum(map(float, shares[:-1])) == pytest.approx(100, abs=0.05 * len(shares)) and shares[-1] == "100.0"
