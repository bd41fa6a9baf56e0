import json
import struct
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from owl3_jax.training.metrics import MetricsFiles, Window, summarize
from tests.full_disk import room_for


def step(loss: float, accuracy: float, targets: int, **others: object) -> dict[str, np.ndarray]:
    values = {"loss": loss, "accuracy": accuracy, "target_tokens": targets, "grad_norm": 1.0, "learning_rate": 0.1}
    values |= {"is_bad": False, "bad_steps": 0} | others
    return {name: np.array(value, np.float32) for name, value in ({"tokens": 0, "images": 0} | values).items()}


def test_loss_and_accuracy_are_means_over_target_tokens():
    values = summarize([step(2.0, 0.5, 30), step(4.0, 1.0, 10)], seconds=1.0)
    assert values["loss"] == pytest.approx(2.5)
    assert values["accuracy"] == pytest.approx(0.625)


def test_steps_without_any_target_count_nothing():
    assert summarize([step(0.0, 0.0, 0)], seconds=1.0)["loss"] == 0.0


def test_rates_gradient_norm_and_learning_rate():
    steps = [
        step(1, 1, 1, tokens=100, images=7, grad_norm=3, learning_rate=0.5),
        step(1, 1, 1, tokens=50, images=4, grad_norm=5),
    ]
    values = summarize(steps, seconds=5.0)
    assert values["tokens_per_second"] == 30.0
    assert values["images_per_second"] == pytest.approx(2.2)
    assert values["grad_norm"] == 4.0
    assert values["learning_rate"] == pytest.approx(0.1)


def test_bad_steps_are_counted_and_count_for_nothing_else():
    bad = step(np.nan, np.nan, 1, grad_norm=np.inf, is_bad=True, bad_steps=3, tokens=100)
    values = summarize([step(2.0, 0.5, 30, tokens=100), bad], seconds=1.0)
    assert (values["loss"], values["accuracy"], values["grad_norm"], values["bad_steps"]) == (2.0, 0.5, 1.0, 3.0)
    assert values["tokens_per_second"] == 200.0
    assert np.isnan([summarize([bad], 1.0)[name] for name in ("loss", "grad_norm")]).all()


def test_each_source_has_its_own_loss():
    of_sources = lambda losses, targets: {"source_losses": losses, "source_target_tokens": targets}
    steps = [step(1, 1, 1, **of_sources([1.0, 5.0, 0.0], [10, 1, 0])), step(1, 1, 1, **of_sources([2.0, 7.0, 0.0], [30, 3, 0]))]
    values = summarize(steps, 1.0, ["a.jsonl", "b.json", "never drawn"])
    found = {name: value for name, value in values.items() if name.startswith("loss/")}
    assert found == {"loss/a.jsonl": pytest.approx(1.75), "loss/b.json": pytest.approx(6.5)}


def test_a_window_starts_anew_after_each_report():
    window = Window()
    on_device = lambda metrics: {name: jnp.asarray(value) for name, value in metrics.items()}
    window.add(on_device(step(2.0, 0.0, 5)))
    assert window.take(1.0)["loss"] == 2.0
    window.add(on_device(step(3.0, 0.0, 5)))
    assert window.take(1.0)["loss"] == 3.0


def lines(workdir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def events(workdir: Path) -> list[Event]:
    """All TensorBoard events, in order of the files (each record: length, checksum, event, checksum)."""
    found = []
    for path in sorted((workdir / "tensorboard").iterdir(), key=lambda path: path.stat().st_mtime_ns):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            found.append(Event.FromString(data[at + 12 : at + 12 + length]))
            at += 12 + length + 4
    return found


def test_reports_are_written_as_json_lines_and_as_events(tmp_path: Path):
    with MetricsFiles(tmp_path, 0) as files:
        files.write(10, {"loss": 2.5, "accuracy": 0.25})
        assert lines(tmp_path) == [{"step": 10, "loss": 2.5, "accuracy": 0.25}]  # readable while the run goes on
        files.write(20, {"loss": 1.5, "accuracy": 0.5})
    assert [line["step"] for line in lines(tmp_path)] == [10, 20]
    written = [(event.step, value.tag, value.simple_value) for event in events(tmp_path) for value in event.summary.value]
    assert written == [(10, "loss", 2.5), (10, "accuracy", 0.25), (20, "loss", 1.5), (20, "accuracy", 0.5)]


def test_after_a_resume_no_step_appears_twice(tmp_path: Path):
    with MetricsFiles(tmp_path, 0) as files:
        for number in (10, 20, 30):
            files.write(number, {"loss": 1.0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4')  # the process was killed
    with MetricsFiles(tmp_path, 20) as files:
        files.write(30, {"loss": 2.0})
    assert lines(tmp_path) == [{"step": 10, "loss": 1.0}, {"step": 20, "loss": 1.0}, {"step": 30, "loss": 2.0}]
    starts = [event.step for event in events(tmp_path) if event.HasField("session_log")]
    assert starts[-1] == 21  # from here on TensorBoard forgets what it read before


def test_a_run_that_starts_again_without_a_checkpoint_drops_all(tmp_path: Path):
    with MetricsFiles(tmp_path, 0) as files:
        files.write(10, {"loss": 1.0})
    with MetricsFiles(tmp_path, 0):
        assert lines(tmp_path) == []


def test_a_full_disk_is_an_error_and_no_endless_wait(tmp_path: Path):
    many = {f"loss/{number}": 1.0 for number in range(200)}  # of which the events are larger than the lines
    files = MetricsFiles(tmp_path, 0)
    with room_for(6_000), pytest.raises(OSError, match="too large"):
        files.write(10, many)
    assert len(lines(tmp_path)) == 1


def test_a_full_disk_while_going_back_is_the_error_that_the_run_ends_with(tmp_path: Path):
    with pytest.raises(OSError, match="too large"), MetricsFiles(tmp_path, 0) as files:
        files.write(10, {"loss": 1.0})
        files.write(20, {"loss": 1.0})
        with room_for(0):
            files.go_back_to(10)
