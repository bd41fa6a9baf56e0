"""Weight files read and written, against the safetensors library and PyTorch; damaged ones are named."""

import importlib.util
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from owl3_jax.formats.errors import CheckpointError
from owl3_jax.formats.weight_files import DTYPES, find_tensors, has_weights
from owl3_jax.formats.weight_writer import TensorSpec, WeightWriter

A, B = np.arange(15, dtype=np.float32).reshape(3, 5), np.arange(7, dtype=np.int64)


def two_shards(directory, **index_changes):
    save_file({"a": A}, directory / "model-00001-of-00002.safetensors")
    save_file({"b": B}, directory / "model-00002-of-00002.safetensors")
    files = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"} | index_changes
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))


def test_reads_shards_and_slices_of_them(tmp_path):
    two_shards(tmp_path)
    tensors = find_tensors(tmp_path)
    np.testing.assert_array_equal(tensors["a"].read()[1:, ::2], A[1:, ::2])
    np.testing.assert_array_equal(tensors["b"].read(), B)
    assert tensors["b"].file.name == "model-00002-of-00002.safetensors"


def test_reads_what_pytorch_saved(tmp_path):
    a = torch.arange(6.0).reshape(2, 3)
    values = {"a": a, "part": a[1:], "b": torch.tensor([1.5, -2.0]).bfloat16(), "p": torch.nn.Parameter(torch.ones(()))}
    values |= {"flags": torch.tensor([True, False]), "nothing": torch.zeros(0, 3), "ids": torch.arange(5)}
    torch.save(values, tmp_path / "pytorch_model.bin")
    tensors = find_tensors(tmp_path)
    assert tensors.keys() == values.keys()
    for name, value in values.items():
        assert f"torch.{tensors[name].dtype}" == str(value.dtype)
        np.testing.assert_array_equal(tensors[name].read().astype(np.float32), value.detach().float().numpy())


def test_what_pytorch_saved_otherwise_is_named(tmp_path):
    whole = torch.arange(6.0).reshape(2, 3)
    torch.save({"a": whole, "turned": whole.T, "steps": 3}, tmp_path / "pytorch_model.bin")
    message = error_of(tmp_path)
    assert "pytorch_model.bin: turned: not stored in one piece" in message
    assert "pytorch_model.bin: steps: <class 'int'> is not a tensor of " in message
    assert len(message.splitlines()) == 3
    torch.save({"a": whole}, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert "a: not stored in one piece, or in PyTorch's old format" in error_of(tmp_path)


def test_without_pytorch_nothing_is_unpickled(tmp_path, monkeypatch):
    torch.save({"a": torch.ones(2)}, tmp_path / "pytorch_model.bin")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin: .*PyTorch.*not installed"):
        find_tensors(tmp_path)


class Exploit:
    def __reduce__(self):
        return print, ("unpickled",)


def test_pickled_code_is_not_run(tmp_path, capsys):
    torch.save({"a": Exploit()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin: torch.load cannot read it"):
        find_tensors(tmp_path)
    assert capsys.readouterr().out == ""


def error_of(directory) -> str:
    with pytest.raises(CheckpointError) as error:
        find_tensors(directory)
    return str(error.value)


def test_truncated_file_names_its_tensor(tmp_path):
    two_shards(tmp_path)
    file = tmp_path / "model-00001-of-00002.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    message = error_of(tmp_path)
    assert f"{file.name}: a: truncated" in message
    assert "b" not in message.splitlines()[1:]


@pytest.mark.parametrize("content", [b"", b"short", b"\xff" * 64, (20).to_bytes(8, "little") + b"{" * 20])
def test_corrupt_header_names_its_file(tmp_path, content):
    (tmp_path / "model.safetensors").write_bytes(content)
    assert "model.safetensors: " in error_of(tmp_path)


@pytest.mark.parametrize(
    ("about", "problem"),
    [
        ({"dtype": "F32", "shape": [4], "data_offsets": [0, 15]}, "15 bytes for F32 [4], which takes 16"),
        ({"dtype": "F3", "shape": [4], "data_offsets": [0, 16]}, "dtype F3"),
        ({"dtype": "F32"}, "corrupt header"),
        (7, "corrupt header"),
        ({"dtype": ["F32"], "shape": [4], "data_offsets": [0, 16]}, "corrupt header"),
        ({"dtype": "F32", "shape": ["4"], "data_offsets": [0, 16]}, "corrupt header"),
        ({"dtype": "F32", "shape": [-4], "data_offsets": [16, 0]}, "corrupt header"),
        ({"dtype": "F32", "shape": [4], "data_offsets": ["0", "16"]}, "corrupt header"),
    ],
)
def test_corrupt_entry_names_its_tensor(tmp_path, about, problem):
    header = json.dumps({"layer.weight": about}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    message = error_of(tmp_path)
    assert "model.safetensors: layer.weight: " in message and problem in message


def test_shards_of_different_checkpoints(tmp_path):
    two_shards(tmp_path, c="model-00002-of-00002.safetensors", b="model-00001-of-00002.safetensors")
    lines = error_of(tmp_path).splitlines()
    assert any(line.strip().startswith("b: in model-00002") for line in lines)
    assert any(line.strip().startswith("c: not in model-00002") for line in lines)


def test_tensor_in_two_files_and_missing_file(tmp_path):
    save_file({"a": A}, tmp_path / "one.safetensors")
    save_file({"a": A, "b": B}, tmp_path / "two.safetensors")
    assert "a: in one.safetensors and again in two.safetensors" in error_of(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "one.safetensors", "b": "gone.safetensors"}}')
    assert "gone.safetensors: this file is missing" in error_of(tmp_path)


NO_INDEX = ["{", "[]", "null", '{"weight_map": 3}', '{"weight_map": {"a": 3}}', '{"weight_map": {"a": ""}}', "{}", "\udcff"]


@pytest.mark.parametrize("index", NO_INDEX)
def test_index_that_is_none(tmp_path, index):
    (tmp_path / "model.safetensors.index.json").write_text(index, errors="surrogateescape")
    assert "model.safetensors.index.json: not an index" in error_of(tmp_path)


def test_directory_without_weights(tmp_path):
    assert "no .safetensors or .bin file" in error_of(tmp_path)


SPECS = st.dictionaries(
    st.text("ab.0123456789", min_size=1, max_size=8),
    st.tuples(st.sampled_from(sorted(DTYPES)), st.lists(st.integers(0, 4), max_size=3)),
    min_size=1,
    max_size=6,
)


@given(SPECS, st.integers(1, 400), st.randoms())
def test_written_files_are_read_by_the_library(tmp_path_factory, specs, limit, random):
    directory = tmp_path_factory.mktemp("weights")
    rng = np.random.default_rng(0)
    make = lambda code, shape: rng.integers(0, 2, (*shape, DTYPES[code].itemsize), np.uint8).view(DTYPES[code])[..., 0]
    tensors = {name: make(code, shape) for name, (code, shape) in specs.items()}
    writer = WeightWriter(directory, [TensorSpec(n, t.dtype, t.shape) for n, t in tensors.items()], max_shard_bytes=limit)
    for name in random.sample(sorted(tensors), len(tensors)):
        writer.write(name, tensors[name])
    files = sorted(directory.glob("*.safetensors"))
    library = {name: value for file in files for name, value in load_file(file).items()}
    ours = find_tensors(directory)
    assert library.keys() == ours.keys() == tensors.keys()
    for name, tensor in tensors.items():
        for read in (library[name], ours[name].read()):
            assert (read.dtype, read.shape, read.tobytes()) == (tensor.dtype, tensor.shape, tensor.tobytes())
    sizes = [sum(t.nbytes for t in ours.values() if t.file == file) for file in files]
    assert max(sizes) <= max(limit, *(t.nbytes for t in tensors.values()))


def test_writer_refuses_what_was_not_declared(tmp_path):
    writer = WeightWriter(tmp_path, [TensorSpec("a", A.dtype, A.shape)])
    with pytest.raises(ValueError, match="a was declared as float32"):
        writer.write("a", A.T)


TORCH_INDEX = json.dumps({"weight_map": {"a": "pytorch_model-00001-of-00001.bin"}})


@pytest.mark.parametrize("sharded", [True, False])
def test_safetensors_come_before_what_is_left_of_pytorch(tmp_path, sharded, monkeypatch, caplog):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)  # PyTorch is not needed
    if sharded:
        two_shards(tmp_path)
    else:
        save_file({"a": A, "b": B}, tmp_path / "model.safetensors")
    (tmp_path / "pytorch_model.bin.index.json").write_text(TORCH_INDEX)
    (tmp_path / "pytorch_model-00001-of-00001.bin").write_bytes(b"not read")
    for _ in range(2):
        tensors = find_tensors(tmp_path)
        np.testing.assert_array_equal(tensors["a"].read(), A)
        np.testing.assert_array_equal(tensors["b"].read(), B)
    (warning,) = caplog.messages  # once, however often it is read
    assert f"{tmp_path}: the weights are read from model" in warning
    assert "not from pytorch_model-00001-of-00001.bin, pytorch_model.bin.index.json" in warning


@pytest.mark.parametrize("shards_are_there", [True, False])
def test_a_whole_single_file_comes_before_the_index_of_other_weights(tmp_path, shards_are_there, caplog):
    two_shards(tmp_path)
    save_file({"a": A + 1, "b": B + 1}, tmp_path / "model.safetensors")
    if not shards_are_there:
        for shard in tmp_path.glob("model-*"):
            shard.unlink()
    tensors = find_tensors(tmp_path)
    np.testing.assert_array_equal(tensors["a"].read(), A + 1)
    np.testing.assert_array_equal(tensors["b"].read(), B + 1)
    assert "read from model.safetensors, and not from " in caplog.text and "model.safetensors.index.json" in caplog.text


@pytest.mark.parametrize("damaged", [True, False])
def test_a_single_file_that_is_not_whole_leaves_the_index_in_force(tmp_path, damaged, caplog):
    two_shards(tmp_path)
    save_file({"a": A + 1}, tmp_path / "model.safetensors")
    if damaged:
        (tmp_path / "model.safetensors").write_bytes(b"damaged")
    np.testing.assert_array_equal(find_tensors(tmp_path)["a"].read(), A)
    assert caplog.text.rstrip().endswith("not from model.safetensors")
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002.safetensors: this file is missing" in error_of(tmp_path)


def test_an_index_without_files_gives_way_to_weights_of_the_other_format(tmp_path, caplog):
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-00001-of-00001.safetensors"}}')
    assert "model-00001-of-00001.safetensors: this file is missing" in error_of(tmp_path)
    torch.save({"a": torch.arange(6.0)}, tmp_path / "pytorch_model.bin")
    np.testing.assert_array_equal(find_tensors(tmp_path)["a"].read(), np.arange(6, dtype=np.float32))
    assert caplog.text.rstrip().endswith("not from model.safetensors.index.json")


def test_files_of_other_tools_are_not_weights(tmp_path, caplog):
    others = ("adapter_model.safetensors", "consolidated.safetensors", "consolidated-00001-of-00002.safetensors")
    for name in (*others, "optimizer.safetensors"):
        save_file({"a": A + 1, "lora": B}, tmp_path / name)
    for name in ("training_args.bin", "optimizer.bin", "adapter_model.bin", "scheduler.bin"):
        (tmp_path / name).write_bytes(b"not weights")
    assert not has_weights(tmp_path)
    assert "no .safetensors or .bin file with the weights of a model" in error_of(tmp_path)
    save_file({"a": A}, tmp_path / "model.safetensors")
    assert has_weights(tmp_path)
    assert find_tensors(tmp_path).keys() == {"a"}
    np.testing.assert_array_equal(find_tensors(tmp_path)["a"].read(), A)
    assert all(name in caplog.text for name in others)


def test_weights_of_one_kind_alone_are_read_without_a_warning(tmp_path, caplog):
    two_shards(tmp_path)
    find_tensors(tmp_path)
    assert caplog.text == ""
