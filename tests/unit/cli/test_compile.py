"""The tool compiles for TPUs without one, says what fits, and what is wrong with its command line. Needs libtpu."""

import json
import runpy
import shutil
import sys
from pathlib import Path

import jax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from owl3_jax.config import ComputeConfig
from owl3_jax.data.digits.tokenizer import make_tokenizer
from owl3_jax.formats.checkpoint import load_config
from owl3_jax.models.owl3 import abstract_params
from owl3_jax.params import count_params
from owl3_jax.sharding import device_bytes
from owl3_jax.tpu.chips import CHIPS
from owl3_jax.tpu.compiled import available_bytes
from owl3_jax.tpu.report import describe
from owl3_jax.tpu.topology import TopologyError, get_topology

ROOT = Path(__file__).parents[3]
GIB = 2**30


def compile_tpu(monkeypatch, *arguments: str, config: str = "configs/digits.py") -> int | str | None:
    """What `python tools/compile_tpu.py --config CONFIG ...` exits with."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["compile_tpu.py", "--config", config, *arguments])
    try:
        runpy.run_path("tools/compile_tpu.py", run_name="__main__")
    except SystemExit as stopped:
        return stopped.code
    return None


def test_the_report_of_a_train_step(monkeypatch, capsys, tmp_path):
    file = tmp_path / "report.json"
    small = [  # sizes by which arrays are told apart
        "--config.mesh.data=1",
        "--config.mesh.fsdp=4",
        "--config.data.tokens_per_row=384",
        "--config.data.images_per_row=7",
        "--config.data.rows=20",
        "--config.optimizer.name=adamw",  # two moments
    ]
    assert compile_tpu(monkeypatch, "--topology", "v5e:2x2", "--json", str(file), *small) is None
    report = json.loads(file.read_text())
    assert (report["chips"], report["available_gib"], report["fits"]) == (4, 15.75, True)
    memory = report["memory_gib"]
    assert 265_088 <= memory["parameters"] * GIB < 1.1 * 265_088  # float32 on four chips, small ones whole
    assert memory["optimizer"] == pytest.approx(2 * memory["parameters"], rel=1e-3)
    assert memory["parameters"] + memory["optimizer"] + memory["batch"] < report["peak_gib"] < 1
    assert {"all-gather", "all-reduce"} <= {c["kind"] for c in report["collectives"]}
    images = report["images"]
    assert images["scores"] is None
    assert 0 < 10 * images["largest_gathered"]["bytes"] < images["features_bytes"]
    assert report["computed_flops"] > report["model_flops"] > 0  # remat full
    assert report["step_seconds_at_least"] == max(report["seconds_at_least"].values())
    check_clock(report)
    assert capsys.readouterr().out == describe(report) + "\n"


def check_clock(report: dict) -> None:
    clock = report["clock"]
    assert clock["seconds"] > report["step_seconds_at_least"] and 0 < clock["mfu"] < report["mfu_at_most"]
    assert sum(clock["kinds"].values()) == pytest.approx(clock["seconds"])
    assert sum(seconds for part in clock["parts"].values() for seconds in part.values()) == pytest.approx(clock["seconds"])
    assert clock["kernels"] > 0 and clock["exposed_collectives"] > 0 and clock["unknown_branches"] == 0
    attention = clock["parts"]["language_model/layers/hyper_attention"]
    assert all(attention[direction] > 0 for direction in ("forward", "backward", "recomputed"))  # of the layers that have it
    sources = [item["source"] for item in clock["dearest"]]
    assert len(sources) == 20 and any(source.startswith("owl3_jax/") for source in sources)


def test_the_model_comes_from_the_checkpoint_that_a_run_starts_from(monkeypatch, tmp_path):
    file, checkpoint = tmp_path / "report.json", shutil.copytree(ROOT / "tests/golden/tiny-240728", tmp_path / "checkpoint")
    make_tokenizer().save(checkpoint / "tokenizer.json")
    settings = {"start.checkpoint": checkpoint, "mesh.data": 1, "data.rows": 1, "data.tokens_per_row": 64}
    flags = ["--topology", "v5e:1x1", "--json", str(file), *(f"--config.{name}={value}" for name, value in settings.items())]
    assert compile_tpu(monkeypatch, *flags, config="configs/finetune.py") is None
    expected = 4 * count_params(abstract_params(load_config(checkpoint), ComputeConfig()))
    assert expected != 4 * 265_088
    assert json.loads(file.read_text())["memory_gib"]["parameters"] * GIB == pytest.approx(expected, rel=0.1)


def test_a_program_that_does_not_fit_exits_with_3(monkeypatch, capsys):
    """The caches alone take more than 16 GiB."""
    arguments = ["--topology", "v5e:1x1", "--program", "prefill", "--images", "400000", "--config.mesh.data=1"]
    assert compile_tpu(monkeypatch, *arguments) == 3
    assert "does not fit: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--topology", "v7x:2x2x1"], "unknown topology 'v7x:2x2x1': use GENERATION:AxB"),
        (["--topology", "v5e:3x3"], "libtpu does not know the topology 'v5e:3x3'"),
        (["--topology", "v5e:2x2", "--config.mesh.fsdp=3"], "needs 3 devices, there are 4"),
        (["--topology", "v5e:2x2", "--program", "decode", "--save", "step"], "--save is for the train step"),
        (["--topology", "v5e:2x2", "--search", "--save", "step"], "leave out --save and --program"),
        (["--topology", "v5e:2x2", "--config.start.checkpoint", "nowhere"], "nowhere is not a checkpoint that can be loaded"),
    ],
)
def test_errors_say_what_to_do(monkeypatch, arguments, message):
    assert message in str(compile_tpu(monkeypatch, *arguments))


def test_libtpu_missing_is_told(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(TopologyError, match="pip install libtpu"):
        get_topology("v5e:2x2")


@pytest.mark.parametrize("generation", CHIPS)
def test_every_generation_shows_its_chips(generation):
    chip = CHIPS[generation]
    topology = get_topology(chip.topology)
    sizes = [int(size) for size in chip.topology.partition(":")[2].split("x")]
    assert topology.chips == len(topology.devices) // chip.devices
    assert topology.chips == sizes[0] * sizes[1] * (sizes[2] if len(sizes) == 3 else 1)


def test_slices_multiply_the_chips():
    topology = get_topology("v5e:2x2", 2)
    assert topology.chips == 8 and {device.slice_index for device in topology.devices} == {0, 1}
    assert topology.describe() == "2 x v5e:2x2, 8 chips"


def test_available_memory_is_what_the_compiler_says():
    assert available_bytes(get_topology("v5e:1x1")) == 15.75 * GIB


def test_bytes_of_one_device():
    mesh = Mesh(jax.devices()[:4], ("a",))
    split = jax.ShapeDtypeStruct((8, 3), "bfloat16", sharding=NamedSharding(mesh, PartitionSpec("a")))
    whole = jax.ShapeDtypeStruct((5,), "float32")
    assert device_bytes({"split": split, "whole": whole}) == 8 * 3 * 2 // 4 + 20
