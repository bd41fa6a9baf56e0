"""Directories there and back, bit by bit, or not at all."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest

from owl3_jax.convert.directories import to_hugging_face, to_orbax
from owl3_jax.convert.load import load_params
from owl3_jax.data.digits.tokenizer import make_tokenizer
from owl3_jax.formats.checkpoint import load_config
from owl3_jax.formats.errors import CheckpointError
from owl3_jax.formats.weight_files import find_tensors
from owl3_jax.processing.processor import Processor
from tests.unit.convert.checkpoints import GOLDEN, change_config, contents, edited, golden_tensors

ROOT = Path(__file__).parents[3]
HEAD, EMBEDDING = "language_model.lm_head.weight", "language_model.model.embed_tokens.weight"


def side_files(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in directory.iterdir() if "safetensors" not in file.name and file.is_file()}


@pytest.mark.parametrize("name", ["tiny-240728", "tiny-tied", "tiny-241014", "tiny-241101"])
def test_round_trip_keeps_every_bit(tmp_path, name):
    to_orbax(GOLDEN / name, tmp_path / "ours")
    to_hugging_face(tmp_path / "ours", tmp_path / "back", max_shard_bytes=10**6)
    assert contents(tmp_path / "back") == contents(GOLDEN / name)
    assert side_files(tmp_path / "back") == side_files(GOLDEN / name)
    assert len(list((tmp_path / "back").glob("model-*-of-00002.safetensors"))) == 2


def test_round_trip_of_bfloat16_a_tied_copy_buffers_and_tokenizer(tmp_path):
    def edit(tensors):
        tensors[HEAD] = tensors[EMBEDDING].copy()
        tensors |= {name: tensor.astype(ml_dtypes.bfloat16) for name, tensor in tensors.items()}
        tensors["language_model.model.rotary_emb.inv_freq"] = np.arange(7, dtype=np.float32)

    official = edited(tmp_path / "official", edit, "tiny-tied")
    for name in ("tokenizer.json", "vocab.json", "merges.txt", "generation_config.json", "preprocessor_config.json"):
        (official / name).write_text(f"{name}!")
    to_orbax(official, tmp_path / "ours")
    to_hugging_face(tmp_path / "ours", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(official)
    assert side_files(tmp_path / "back") == side_files(official)
    assert (tmp_path / "ours" / "tokenizer.json").read_text() == "tokenizer.json!"


def test_dtype_is_cast_and_told(tmp_path):
    to_orbax(GOLDEN / "tiny-241014", tmp_path / "ours", dtype="bfloat16")
    config = load_config(tmp_path / "ours")
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    embedding = load_params(tmp_path / "ours", config)["language_model"]["embed_tokens"]
    np.testing.assert_array_equal(embedding, golden_tensors("tiny-241014")[EMBEDDING].astype(ml_dtypes.bfloat16))


def test_every_dtype_in_config_json_is_that_of_the_tensors_there_and_back(tmp_path):
    official = edited(tmp_path / "official", lambda tensors: None, "tiny-241014")
    change_config(official, dtype="float32", torch_dtype="float32", text_config={"dtype": "float32"})
    to_orbax(official, tmp_path / "ours", dtype="bfloat16")
    to_hugging_face(tmp_path / "ours", tmp_path / "back")
    to_hugging_face(tmp_path / "ours", tmp_path / "again", dtype="float32")
    for name, dtype in (("ours", "bfloat16"), ("back", "bfloat16"), ("again", "float32")):
        tree = json.loads((tmp_path / name / "config.json").read_text())
        assert (tree["dtype"], tree["torch_dtype"], tree["text_config"]) == (dtype, dtype, {"dtype": dtype})
    assert contents(tmp_path / "back")[EMBEDDING][0] == ml_dtypes.bfloat16
    assert contents(tmp_path / "again")[EMBEDDING][0] == np.float32


def test_progress_counts_all_bytes(tmp_path):
    calls = []
    to_orbax(GOLDEN / "tiny-tied", tmp_path / "ours", advance=lambda done, total: calls.append((done, total)))
    assert sum(done for done, _ in calls) == calls[0][1] > 10**6
    calls.clear()
    to_hugging_face(tmp_path / "ours", tmp_path / "back", advance=lambda done, total: calls.append((done, total)))
    assert sum(done for done, _ in calls) == calls[0][1] == sum(t.nbytes for t in find_tensors(GOLDEN / "tiny-tied").values())


@pytest.mark.parametrize("convert", [to_orbax, to_hugging_face])
def test_nothing_is_left_of_a_failure(tmp_path, convert):
    source = GOLDEN / "tiny-tied"
    if convert is to_hugging_face:
        to_orbax(source, tmp_path / "ours")
        source = tmp_path / "ours"
    before = sorted(tmp_path.iterdir())

    def fail(done, total):
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        convert(source, tmp_path / "target", advance=fail)
    assert sorted(tmp_path.iterdir()) == before


def test_refuses_what_exists_and_what_it_did_not_write(tmp_path):
    with pytest.raises(CheckpointError, match="exists already"):
        to_orbax(GOLDEN / "tiny-tied", tmp_path)
    with pytest.raises(CheckpointError, match="neither converted nor trained"):
        to_hugging_face(GOLDEN / "tiny-tied", tmp_path / "back")
    for convert in (to_orbax, to_hugging_face):
        with pytest.raises(CheckpointError, match="hub ids are not fetched: download with huggingface-cli download org/name "):
            convert(Path("org/name"), tmp_path / "target")
    assert list(tmp_path.iterdir()) == []


def test_damaged_conversion_is_named(tmp_path):
    to_orbax(GOLDEN / "tiny-tied", tmp_path / "ours")
    model = tmp_path / "ours" / "model.json"
    about = json.loads(model.read_text())
    model.write_text(json.dumps(about | {"model": about["model"] | {"tie_word_embeddings": False, "vocab_size": 321}}))
    with pytest.raises(CheckpointError) as error:
        to_hugging_face(tmp_path / "ours", tmp_path / "back")
    assert "language_model/lm_head: missing" in str(error.value)
    assert "language_model/embed_tokens: shape [320, 56], expected [321, 56]" in str(error.value)
    model.write_text("{}")
    with pytest.raises(CheckpointError, match=r"model\.json"):
        load_config(tmp_path / "ours")


def test_missing_and_damaged_pieces_are_named(tmp_path):
    to_orbax(GOLDEN / "tiny-241014", tmp_path / "ours")
    config = load_config(tmp_path / "ours")
    gate = tmp_path / "ours" / "params" / "language_model.hyper_layers.gate"
    next(gate.glob("0.*")).unlink()
    with pytest.raises(CheckpointError, match=r"language_model\.hyper_layers\.gate"):
        load_params(tmp_path / "ours", config)
    (gate / ".zarray").write_text("{")
    with pytest.raises(CheckpointError, match="language_model/hyper_layers/gate: "):
        load_params(tmp_path / "ours", config)
    shutil.rmtree(gate)
    with pytest.raises(CheckpointError, match="language_model/hyper_layers/gate: missing"):
        load_params(tmp_path / "ours", config)


def test_orbax_reads_what_was_written(tmp_path):
    def zero_gates(tensors):
        tensors |= {name: 0 * tensor for name, tensor in tensors.items() if name.endswith(".gate")}

    directory = edited(tmp_path / "zeros", zero_gates, "tiny-241014")
    to_orbax(directory, tmp_path / "ours")
    expected = load_params(directory, load_config(directory))
    with ocp.StandardCheckpointer() as checkpointer:
        restored = checkpointer.restore(tmp_path / "ours" / "params", expected)
    jax.tree.map(np.testing.assert_array_equal, restored, expected)


def run_tool(*arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "tools" / "convert_checkpoint.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_command_line_there_and_back(tmp_path):
    assert run_tool("--from", GOLDEN / "tiny-241101", "--to", tmp_path / "ours").returncode == 0
    assert run_tool("--from", tmp_path / "ours", "--to", tmp_path / "back", "--to-hf").returncode == 0
    assert contents(tmp_path / "back") == contents(GOLDEN / "tiny-241101")


def test_command_line_writes_processor_settings_and_leaves_the_tokenizer_alone(tmp_path):
    official = edited(tmp_path / "official", lambda tensors: None, "tiny-241101")
    make_tokenizer().save(official / "tokenizer.json")
    file = official / "tokenizer.json"
    file.write_text(file.read_text() + "\n")
    done = run_tool("--from", official, "--to", tmp_path / "ours")
    assert done.returncode == 0 and "no processor.json" not in done.stderr
    assert (tmp_path / "ours" / "tokenizer.json").read_bytes() == file.read_bytes()
    assert (tmp_path / "ours" / "processor.json").exists()
    processor = Processor.from_pretrained(tmp_path / "ours")
    assert (processor.image_size, processor.media_style, processor.crop) == (56, "markers", True)


def test_command_line_says_that_a_tokenizer_is_missing_or_damaged(tmp_path):
    official = edited(tmp_path / "official", lambda tensors: None, "tiny-tied")
    done = run_tool("--from", official, "--to", tmp_path / "ours")
    assert done.returncode == 0 and f"no processor.json will be written: {official} has no tokenizer" in done.stderr
    (official / "tokenizer.json").write_text("{")
    done = run_tool("--from", official, "--to", tmp_path / "again")
    assert done.returncode == 1 and "tokenizer.json" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "again").exists()


def test_command_line_names_a_truncated_tensor(tmp_path):
    source = tmp_path / "truncated"
    shutil.copytree(GOLDEN / "tiny-tied", source)
    file = source / "model-00002-of-00002.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    done = run_tool("--from", source, "--to", tmp_path / "ours")
    assert done.returncode == 1
    assert f"{file.name}: vision_model.post_layernorm.weight: truncated" in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["truncated"]
