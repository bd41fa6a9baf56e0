"""The tool of the three stages, a step each: what stage 1 leaves alone, and the export against the ladder's PyTorch model."""

import numpy as np
import torch

import owl3_jax
from owl3_jax.formats.checkpoint import load_config
from owl3_jax.formats.weight_files import find_tensors
from tests.e2e.tools import ROOT, run_script_here
from tests.parity.torch_owl3 import TorchOwl3
from tests.tolerances import EXPORTED_LOGITS


def test_three_stages_and_back_to_the_official_layout(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    monkeypatch.chdir(tmp_path)
    assert run_script_here(monkeypatch, "three_stages.py", "--to", "photographs", "--steps", "1", "1", "2") == 1, "not recalled"
    said = capsys.readouterr().out
    assert "tensors of SigLIP and Qwen2 that stage 1 has changed: 0" in said
    assert "captions that are recalled exactly: 0 of 64" in said

    export = tmp_path / "photographs" / "export"
    tensors = {name: torch.from_numpy(tensor.read().astype(np.float32)) for name, tensor in find_tensors(export).items()}
    reference = TorchOwl3(load_config(export))
    reference.load_state_dict(tensors, strict=False)
    owl = owl3_jax.from_pretrained(export)
    files = sorted((tmp_path / "photographs" / "data").glob("*.jpg"))
    assert len(files) == 64
    sample = owl.processor("<|image|> and <|image|>: which is which?", [str(file) for file in files[:2]])
    pixels = torch.from_numpy(sample.pixel_values.transpose(0, 3, 1, 2)).double() / 127.5 - 1
    with torch.no_grad():
        outputs = reference.double()(
            torch.from_numpy(sample.input_ids).long(), pixels, torch.from_numpy(sample.image_starts).long()
        )
    np.testing.assert_allclose(owl.logits(sample), outputs.logits.numpy(), atol=EXPORTED_LOGITS, rtol=0)

    def moved(part: str, place: str) -> set[str]:
        found = {place + name: tensor for name, tensor in find_tensors(tmp_path / "photographs" / part).items()}
        read = found.keys() & tensors.keys()  # SigLIP's last block is not exported
        assert len(read) > 30
        return {name for name in read if not np.array_equal(found[name].read().astype(np.float32), tensors[name].numpy())}

    assert not moved("siglip", ""), "frozen in all stages"
    assert "language_model.model.layers.0.mlp.up_proj.weight" in moved("qwen2", "language_model."), "trained in stage 2"
