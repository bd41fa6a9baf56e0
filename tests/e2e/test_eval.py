"""`eval.py` as it is called, on an untrained model of a few thousand parameters."""

import json
import re
import runpy
from pathlib import Path

import grain
import jax
import pytest

from owl3_jax.config import MeshConfig
from owl3_jax.host.command_line import load_config
from owl3_jax.sharding import make_mesh
from owl3_jax.training.checkpoint import Checkpoints
from owl3_jax.training.step import init_state

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
        images_per_batch=40, batch_shapes=1, max_new_tokens=3, samples_shown=4,
    )
    return Config(model=model, compute=ComputeConfig(dtype="float32"), mesh=MeshConfig(data=4, fsdp=2), eval=evaluation)
"""


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> Path:
    """A workdir with a config file and the checkpoint of a model that never trained, saved from one device."""
    workdir = tmp_path_factory.mktemp("run")
    (workdir / "tiny.py").write_text(CONFIG)
    config = load_config(workdir / "tiny.py")
    data = iter(grain.MapDataset.range(3).to_iter_dataset())
    with Checkpoints(workdir, config) as checkpoints:
        checkpoints.save(1, init_state(config, make_mesh(MeshConfig(), jax.devices()[:1])), data)
    return workdir


def run(monkeypatch, config: Path, workdir: Path, *flags: str) -> None:
    monkeypatch.setattr("sys.argv", ["eval.py", f"--config={config}", f"--workdir={workdir}", *flags])
    runpy.run_path(str(SCRIPT), run_name="__main__")


def test_the_same_model_gives_the_same_report_on_eight_devices(workdir, monkeypatch, capsys):
    texts = []
    for _ in range(2):
        run(monkeypatch, workdir / "tiny.py", workdir)
        texts.append((workdir / "eval" / "report.json").read_text())
    before_run_block = [text.split('"run": {')[0] for text in texts]
    assert before_run_block[0] == before_run_block[1] != texts[0]
    report = json.loads(texts[0])
    assert len(report["exact_match"]["points"]) == len(report["distractor_resistance"]["points"]) == 4
    assert len(report["samples"]) == 4 and report["run"]["device"].startswith("8 x ")
    printed = capsys.readouterr().out
    for name in ("report.json", "exact_match.png", "distractor_resistance.png", "samples.png"):
        assert re.search(rf"^\S*eval/{name}$", printed, re.MULTILINE)


def test_a_workdir_without_a_checkpoint_is_an_error(workdir, tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match=rf"error: {tmp_path}(.|\n)*no checkpoints/ .*train first"):
        run(monkeypatch, workdir / "tiny.py", tmp_path)


def test_a_checkpoint_of_another_model_is_an_error_that_names_the_field(workdir, monkeypatch):
    with pytest.raises(SystemExit, match=r"model\.hyper_layers"):
        run(monkeypatch, workdir / "tiny.py", workdir, "--config.model.hyper_layers=1")


def test_more_images_than_are_held_out_is_an_error(workdir, monkeypatch):
    with pytest.raises(SystemExit, match="only 359 are held out"):
        run(monkeypatch, workdir / "tiny.py", workdir, "--config.eval.distractor_images=1000")
