"""`eval.py` as it is called, on an untrained model of a few thousand parameters."""

import dataclasses
import functools
import json
import os
import re
import runpy
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from owl3_jax.cli.eval import main
from owl3_jax.config import Config, MeshConfig
from owl3_jax.data.digits.tokenizer import make_tokenizer
from owl3_jax.evaluation.tasks import digits_prompts
from owl3_jax.host.command_line import load_config
from owl3_jax.inference.engine import Engine
from owl3_jax.processing.processor import Processor
from owl3_jax.sharding import make_mesh
from owl3_jax.training.checkpoint import Checkpoints
from owl3_jax.training.step import init_state
from tests.xla_flags import FAST_TO_COMPILE

SCRIPT = Path(__file__).parents[2] / "eval.py"
CONFIG = """
from owl3_jax.config import ComputeConfig, Config, EvalConfig, MeshConfig, ModelConfig, VisionConfig


def get_config():
    vision = VisionConfig(
        hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4
    )
    model = ModelConfig(
        vocab_size=53, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, hyper_layers=(2,), rope_theta=1e4, tie_word_embeddings=True, vision=vision,
    )
    evaluation = EvalConfig(
        questions=3, exact_match_images=(1, 5), distractor_questions=2, distractor_images=(1, 3), distractor_draws=2,
        images_per_batch=40, batch_shapes=1, max_new_tokens=3, samples_shown=4, tasks=("digits_exact", "digits_distractors"),
    )
    return Config(model=model, compute=ComputeConfig(dtype="float32"), mesh=MeshConfig(data=4, fsdp=2), eval=evaluation)
"""


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> Path:
    """A workdir with a config file and the checkpoint of a model that never trained, saved from one device."""
    workdir = tmp_path_factory.mktemp("run")
    (workdir / "tiny.py").write_text(CONFIG)
    config = load_config(workdir / "tiny.py")
    save_checkpoint(workdir, config, 1)
    Processor(make_tokenizer(), config.model.vision.image_size).save(workdir)
    return workdir


@pytest.fixture(scope="module")
def evaluated(workdir) -> Path:
    """The workdir with its evaluation."""
    main([f"--config={workdir}/tiny.py", f"--workdir={workdir}"])
    return workdir


@pytest.fixture
def fresh(workdir, tmp_path) -> Path:
    """A copy of the workdir without its evaluation."""
    shutil.copytree(workdir, tmp_path / "copy", ignore=shutil.ignore_patterns("eval"))
    return tmp_path / "copy"


def save_checkpoint(workdir: Path, config: Config, step: int) -> None:
    lanes = jnp.zeros((config.data.rows, 5), jnp.int32)
    with Checkpoints(workdir, config) as checkpoints:
        checkpoints.save(step, init_state(config, make_mesh(MeshConfig(), jax.devices()[:1])), lanes)


def read_answers(workdir: Path) -> list[dict]:
    (path,) = (workdir / "eval").glob("answers-*.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def results(workdir: Path) -> list[bytes]:
    """What equal answers make equal."""
    names = ("samples.jsonl", "scores.json", "samples.png", "digits_exact.png", "digits_distractors.png")
    return [(workdir / "eval" / name).read_bytes() for name in names]


def run(monkeypatch, config: Path, workdir: Path, *flags: str) -> None:
    monkeypatch.setattr("sys.argv", ["eval.py", f"--config={config}", f"--workdir={workdir}", *flags])
    runpy.run_path(str(SCRIPT), run_name="__main__")


def test_the_same_model_gives_the_same_records_on_eight_devices_and_on_one(evaluated, fresh, tmp_path, monkeypatch, capsys):
    run(monkeypatch, fresh / "tiny.py", fresh)
    assert results(fresh) == results(evaluated)
    report = json.loads((fresh / "eval" / "report.json").read_text())
    assert list(report["tasks"]) == ["digits_exact", "digits_distractors"] and report["run"]["device"].startswith("8 x ")
    assert len(report["tasks"]["digits_exact"]["scores"]["official"]) == 1 + 4
    assert report["spent"]["questions"] == 60 and report["settings"]["seed"] == 0
    printed = capsys.readouterr().out
    for name in ("scores.json", "report.html", "samples.jsonl", "digits_exact.png", "digits_distractors_places.png"):
        assert re.search(rf"^\S*eval/{name}$", printed, re.MULTILINE)


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_no_batch_size_changes_a_record(evaluated, fresh, monkeypatch, rows):
    run(
        monkeypatch,
        fresh / "tiny.py",
        fresh,
        "--config.mesh.data=1",
        "--config.mesh.fsdp=1",
        f"--config.eval.rows_per_batch={rows}",
    )
    assert results(fresh) == results(evaluated)


def test_an_evaluation_that_was_stopped_resumes(evaluated, fresh, monkeypatch):
    prompts, generate = [], Engine.generate

    def stopping(self, asked, *arguments, **options):
        prompts.append(len(asked))
        if len(prompts) == 3:
            raise KeyboardInterrupt
        return generate(self, asked, *arguments, **options)

    monkeypatch.setattr(Engine, "generate", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(monkeypatch, fresh / "tiny.py", fresh)
    assert not (fresh / "eval" / "samples.jsonl").exists()
    run(monkeypatch, fresh / "tiny.py", fresh)
    assert results(fresh) == results(evaluated)
    assert sum(prompts) - prompts[2] == len(read_answers(fresh)) == 2 * 2 * 3 + 2 * 2 * (4 + 8)


def test_a_new_checkpoint_is_asked_anew(fresh, monkeypatch):
    run(monkeypatch, fresh / "tiny.py", fresh)
    config = load_config(fresh / "tiny.py")
    save_checkpoint(fresh, dataclasses.replace(config, train=dataclasses.replace(config.train, seed=1)), 2)
    calls, generate = [], Engine.generate
    monkeypatch.setattr(Engine, "generate", lambda self, *a, **options: calls.append(a) or generate(self, *a, **options))
    run(monkeypatch, fresh / "tiny.py", fresh)
    assert len(calls) > 2 and len(list((fresh / "eval").glob("answers-*.jsonl"))) == 2
    calls.clear()
    run(monkeypatch, fresh / "tiny.py", fresh)
    assert not calls, "all answers of this checkpoint are there"


def test_an_image_that_cannot_be_read_counts_as_wrong_and_is_asked_again(evaluated, fresh, monkeypatch):
    decoded, broken = digits_prompts.decoded_picture, []

    def breaking(picture):
        broken[:] = broken or [picture]
        return b"no image" if [picture] == broken else decoded(picture)

    monkeypatch.setattr(digits_prompts, "decoded_picture", breaking)
    failure = r"error: \d+ of 60 questions have no answer and count as wrong: digits_exact colour/1/0: cannot read image 0: "
    with pytest.raises(SystemExit, match=failure):
        run(monkeypatch, fresh / "tiny.py", fresh)
    assert 40 < len(read_answers(fresh)) < 60
    failed = [json.loads(line) for line in (fresh / "eval" / "samples.jsonl").read_text().splitlines() if "error" in line]
    assert len(failed) == 60 - len(read_answers(fresh)) and all(each["official"] == each["strict"] == 0 for each in failed)
    monkeypatch.setattr(digits_prompts, "decoded_picture", decoded)
    run(monkeypatch, fresh / "tiny.py", fresh)
    assert results(fresh) == results(evaluated)


def test_two_processes_evaluate_together_and_the_first_one_writes(evaluated, fresh):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, str(SCRIPT), f"--config={fresh}/tiny.py", f"--workdir={fresh}"]
    command += ["--config.mesh.data=2", "--config.mesh.fsdp=1", f"--distributed.coordinator={address}"]
    command += ["--distributed.processes=2"]
    environment = os.environ | {"XLA_FLAGS": FAST_TO_COMPILE}  # one device each
    start = functools.partial(subprocess.Popen, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    processes = [start([*command, f"--distributed.process={index}"]) for index in range(2)]
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert results(fresh) == results(evaluated)
    assert "samples.png" in outputs[0][0]
    assert [line for line in outputs[1][0].splitlines() if not line.startswith("[Gloo]")] == []


def test_a_workdir_without_a_checkpoint_is_an_error(workdir, tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match=rf"error: {tmp_path}(.|\n)*no checkpoints/ .*train first"):
        run(monkeypatch, workdir / "tiny.py", tmp_path)


def test_a_file_in_place_of_the_results_is_an_error_before_the_questions(fresh, monkeypatch):
    (fresh / "eval").touch()
    monkeypatch.setattr(Engine, "generate", lambda *_, **__: pytest.fail("a question was asked"))
    with pytest.raises(SystemExit, match=r"error: .*eval is a file: the results would go there; move it away"):
        run(monkeypatch, fresh / "tiny.py", fresh)


def test_a_checkpoint_of_another_model_is_an_error_that_names_the_field(workdir, monkeypatch):
    with pytest.raises(SystemExit, match=r"model\.hyper_layers"):
        run(monkeypatch, workdir / "tiny.py", workdir, "--config.model.hyper_layers=1")


def test_more_images_than_are_held_out_is_an_error(workdir, monkeypatch):
    with pytest.raises(SystemExit, match="only 359 are held out"):
        run(monkeypatch, workdir / "tiny.py", workdir, "--config.eval.distractor_images=1000")
