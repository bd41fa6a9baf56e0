"""The search for the largest batch, the comparison of long sequences, and the tables of docs/tpu.md."""

import dataclasses
import json
from pathlib import Path

import both_ways
import matplotlib.pyplot as plt
import pytest
import tpu_tables

from owl3_jax import sharding
from owl3_jax.config import ConfigError, MeshConfig
from owl3_jax.flops import prefill_flops
from owl3_jax.host.command_line import load_config
from owl3_jax.tpu import search as searching
from owl3_jax.tpu.compiled import OutOfMemory
from owl3_jax.tpu.programs import Prompt
from owl3_jax.tpu.topology import get_topology
from tests.tiny import model_config

ROOT = Path(__file__).parents[3]
MOST = {"none": 0, "dots": 7, "minimal": 8, "full": 64, "offload": 143}


def test_the_search_finds_the_largest_batch(monkeypatch):
    """What fits is made up here."""
    tried = []

    def compile_for(program, *_):
        remat, rows = program
        tried.append(remat)
        if rows > MOST[remat]:
            raise OutOfMemory(2.0, 1.0)
        return program

    clock = {"seconds": 5.0, "mfu": 0.4}
    report = {"peak_gib": 1.0, "available_gib": 2.0, "step_seconds_at_least": 4.0, "clock": clock}
    monkeypatch.setattr(searching, "compile_for", compile_for)
    monkeypatch.setattr(searching, "train", lambda config, mesh: (config.compute.remat, config.data.rows))
    monkeypatch.setattr(searching, "make_report", lambda *_: report)
    topology = get_topology("v5e:2x2")
    mesh = sharding.make_mesh(MeshConfig(data=1, fsdp=4), topology.devices)
    config = load_config(ROOT / "configs/digits.py")
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, rows=16))
    found = list(searching.search(config, topology, mesh, lambda line: None))
    assert {row["remat"]: row["rows"] for row in found} == {"none": 0, "dots": 4, "minimal": 8, "full": 64, "offload": 140}
    assert [tried.count(remat) for remat in MOST] == [3, 3, 3, 8, 10]  # from 16 rows by doubling or halving, then bisecting
    table = [searching.describe_search(row) for row in found]
    assert "does not fit" in table[0] and table[1].split()[:3] == ["dots", "4", "1"]


def test_the_fastest_way_to_divide_a_batch(monkeypatch):
    """What fits, and how long it takes, is made up here: memory by rows of a microbatch, time by the size of the gathers."""
    most = {"dots": 1, "minimal": 2, "full": 4}

    def compile_for(program, *_):
        if program.data.rows // (4 * program.train.microbatches) > most[program.compute.remat]:
            raise OutOfMemory(2.0, 1.0)
        return program

    def make_report(program, topology, mesh):
        clock = {"seconds": 1.0 + mesh.shape["fsdp"] + program.train.microbatches, "mfu": 0.4}
        way = {"mesh": dict(mesh.shape), "slices": topology.slices, "remat": program.compute.remat}
        return way | {"peak_gib": 1.0, "available_gib": 2.0, "microbatches": program.train.microbatches, "clock": clock}

    monkeypatch.setattr(searching, "compile_for", compile_for)
    monkeypatch.setattr(searching, "train", lambda config, mesh: config)
    monkeypatch.setattr(searching, "make_report", make_report)
    topology = get_topology("v5e:2x2")
    config = load_config(ROOT / "configs/digits.py")
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, rows=32))
    found = list(searching.fastest(config, topology, lambda line: None))
    assert [(row["mesh"]["data"], row["mesh"]["fsdp"]) for row in found] == [(1, 4)] * 3 + [(2, 2)] * 3 + [(4, 1)] * 3
    assert [row["microbatches"] for row in found] == [8, 4, 2] * 3
    assert searching.describe_choice(found) == (
        "fastest: --config.mesh.data=4 --config.mesh.fsdp=1 --config.compute.remat=full --config.train.microbatches=2"
    )
    assert "--config.mesh.data=2 " in searching.describe_choice([found[8] | {"slices": 2}])
    with pytest.raises(ConfigError, match="set them to numbers"):
        searching.meshes(dataclasses.replace(config, mesh=MeshConfig(data=1, tensor=-1)), topology)
    most.update(dots=0)
    nothing = next(searching.fastest(config, topology, lambda line: None))
    assert "do not fit" in searching.describe_fastest(nothing) and "fewer rows" in searching.describe_choice([nothing])
    assert searching.describe_fastest(found[2]).split() == ["1", "4", "full", "2", "1.00", "2.00", "7.00", "s", "40.0%"]


def test_a_prompt_with_image_tokens_in_its_text():
    prompt = Prompt.with_images(11)
    assert (prompt.images, prompt.tokens) == (11, 40 + 5 * 11)
    assert prompt.as_text(model_config()) == Prompt(0, 40 + 9 * 11)


def test_the_comparison_shows_both_ways():
    config = model_config()
    rows = [
        {
            "images": images,
            "way": way,
            "tokens": 5,
            "available_gib": 9.0,
            "prefill_gib": 1.0,
            "decode_gib": 2.0,
            "decode_flops": 10**9,
        }
        | {"prefill_flops": prefill_flops(config, images, 5)}
        for images in (1, 4)
        for way in ("hyper attention", "tokens in the text")
    ]
    assert both_ways.describe(rows).count("hyper attention") == 2
    figure = both_ways.draw(rows, "v5p:1x1x1", config)
    assert [line.get_label() for line in figure.axes[0].lines] == ["hyper attention", "tokens in the text", "what the chip has"]
    plt.close(figure)


def test_tables_fill_their_places():
    report = {
        "mesh": {"data": 1, "fsdp": 8},
        "remat": "full",
        "microbatches": 2,
        "peak_gib": 20.04,
        "available_gib": 15.75,
        "fits": False,
    }
    fits = report | {"fits": True, "peak_gib": 9.0, "seconds_at_least": {"compute": 2.0, "ICI": 1.0}}
    fits |= {"step_seconds_at_least": 2.0, "mfu_at_most": 0.754, "compile_seconds": {"cpu": 150.4}}
    fits |= {"clock": {"seconds": 3.14, "mfu": 0.483}}
    runs = {"stage 1, 7b": report, "stage 3, 7b": fits}
    reports = json.loads(json.dumps({f"{name} on v5e:16x16: train": each for name, each in runs.items()}))
    table = tpu_tables.stages_table(reports)
    assert "| stage 1, 7b on v5e:16x16 | fsdp 8 | full, 2 | **no** | 20.0 of 15.8 | | | | | | |" in table
    run = "fsdp 8 | full, 2 | yes | 9.0 of 15.8 | 3.14 s | 48.3% | 2.00 s | compute | 75% | 150 s"
    assert f"| stage 3, 7b on v5e:16x16 | {run} |" in table
    page = tpu_tables.fill("a\n<!-- stages -->\nold\n<!-- end -->\nb", {"stages": table})
    assert page == f"a\n<!-- stages -->\n{table}\n<!-- end -->\nb"
    with pytest.raises(SystemExit, match="no place for the table 'prompts'"):
        tpu_tables.fill(page, {"prompts": ""})


def test_the_time_of_an_answer():
    """100 images, eight at once: 13 batches; 540 tokens: three chunks of 256."""
    seconds = {"encode": 0.1, "store": 0.01, "prefill": 0.02, "decode": 0.005}
    report = lambda name: {"fits": True, "what": "8 images", "clock": {"seconds": seconds[name]}}
    of_case = {name: report(name) | {"seconds_at_least": {"HBM": 0.004}} for name in seconds}
    reports = {f"time of 100 images on v5e:2x2: {name}": each for name, each in of_case.items()}
    (line,) = tpu_tables.times_table(reports).splitlines()[2:]
    assert line == "| 100 | v5e:2x2 | 1.43 | 0.060 | 1.49 | 1.06 s | 5.0 | 4.0 |"
    reports["time of 100 images on v5e:2x2: store"] = {"fits": False}
    assert len(tpu_tables.times_table(reports).splitlines()) == 2


def test_no_stage_gathers_images():
    """By what was compiled for the table: no scores of text over images, nothing gathered that comes near all features."""
    reports = json.loads(tpu_tables.Flags.reports.read_text())
    stages = {name: reports[name] for case in tpu_tables.STAGES if (name := f"{case.name}: train") in reports}
    assert len(stages) == len(tpu_tables.STAGES)
    for name, report in stages.items():
        images = report["images"]
        assert report["fits"] and images["scores"] is None and images["images_gathered"] is None, name
        features = report["microbatches"] * images["features_bytes"]
        assert 9 * images["largest_gathered"]["bytes"] < features, name


def test_every_case_names_a_config_that_is_there():
    for case in (*tpu_tables.STAGES, *tpu_tables.PROMPTS):
        assert load_config(ROOT / case.arguments[1]) is not None, case.name
