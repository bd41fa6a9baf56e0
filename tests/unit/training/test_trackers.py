"""What services get. They are replaced here; what is called on them was tried with wandb 0.31.0 and mlflow-skinny 3.17.2."""

import sys
import types
from pathlib import Path

import pytest

from owl3_jax.config import Config, ConfigError
from owl3_jax.training.trackers import open_trackers


class Wandb(types.ModuleType):
    def __init__(self) -> None:
        super().__init__("wandb")
        self.starts, self.logged, self.ended = [], [], []
        self.id = "run-1"

    def init(self, **options: object) -> "Wandb":
        self.starts.append(options)
        return self

    def log(self, values: dict[str, float], step: int) -> None:
        self.logged.append((step, values))

    def finish(self, exit_code: int) -> None:
        self.ended.append(exit_code)


class Mlflow(types.ModuleType):
    def __init__(self) -> None:
        super().__init__("mlflow")
        self.calls = []
        self.info = types.SimpleNamespace(run_id="abc")

    def set_experiment(self, name: str) -> None:
        self.calls.append(("experiment", name))

    def start_run(self, run_id: str | None, run_name: str | None) -> "Mlflow":
        self.calls.append(("start", run_id, run_name))
        return self

    def log_params(self, values: dict[str, str]) -> None:
        assert max(map(len, values.values())) <= 500
        self.calls.append(("params", values["train.steps"]))

    def log_metrics(self, values: dict[str, float], step: int) -> None:
        self.calls.append((step, values))

    def end_run(self, status: str) -> None:
        self.calls.append(status)


def test_wandb_goes_on_in_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    wandb = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    for failed in (True, False):
        (tracker,) = open_trackers(["wandb"], Config(), tmp_path)
        tracker.write(20, {"loss": 1.5})
        tracker.close(failed=failed)
    first, second = wandb.starts
    assert (first["id"], first["resume"], first["project"], first["name"]) == (None, None, "owl3_jax", tmp_path.name)
    assert (second["id"], second["resume"]) == ("run-1", "allow") and second["config"]["train"]["steps"] == 1000
    assert wandb.logged == [(20, {"loss": 1.5})] * 2 and wandb.ended == [1, 0]


def test_mlflow_gets_names_and_numbers_that_it_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    mlflow = Mlflow()
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    for failed in (True, False):
        (tracker,) = open_trackers(["mlflow"], Config(), tmp_path)
        tracker.write(20, {"loss": 1.5, "loss/a (test)": 2.0, "grad_norm": float("nan")})
        tracker.close(failed=failed)
    report = (20, {"loss": 1.5, "loss/a _test_": 2.0})
    assert mlflow.calls == [
        ("experiment", "owl3_jax"), ("start", None, tmp_path.name), ("params", "1000"), report, "FAILED",
        ("start", "abc", None), report, "FINISHED",
    ]  # fmt: skip


def test_a_service_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"wandb, which is not installed: pip install 'owl3_jax\[wandb\]'"):
        open_trackers(["wandb"], Config(), tmp_path)
