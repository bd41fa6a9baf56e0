"""The parity tool on recorded cases, and against a stand-in with the official model's interface."""

import json
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file

from tests.parity.ladder import config_json, pair, sample

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
TOOL = ROOT / "tools" / "check_parity.py"


def run_tool(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(TOOL), *map(str, arguments)], capture_output=True, text=True, cwd=ROOT)


def cut_cases(path: Path, checkpoint: str, case: str, **changes) -> Path:
    """One case of a golden file, with arrays changed."""
    with np.load(GOLDEN / f"{checkpoint}.npz") as file:
        arrays = {key: value for key, value in file.items() if key.startswith(f"{case}/")}
    for name, change in changes.items():
        arrays[f"{case}/{name}"] = change(arrays[f"{case}/{name}"])
    np.savez(path, **arrays)
    return path


def test_what_differs_is_marked(tmp_path):
    add_last = lambda amount: lambda x: np.concatenate([x[:-1], x[-1:] + amount])
    changes = {"logits": add_last(3e-4), "greedy": add_last(1)}
    cases = cut_cases(tmp_path / "cases.npz", "tiny-240728", "case0", **changes)
    done = run_tool("--checkpoint", GOLDEN / "tiny-240728", "--cases", cases)
    assert done.returncode == 1
    differing = [line.split()[:2] for line in done.stdout.splitlines() if "DIFFERS" in line]
    assert differing == [["case0", "logits"], ["case0", "greedy"]]
    assert "11 of 12 tokens" in done.stdout
    assert done.stdout.splitlines()[-1] == "7 of 9 agree within 0.0001"


def test_missing_checkpoint_is_named(tmp_path):
    done = run_tool("--checkpoint", tmp_path, "--cases", GOLDEN / "tiny-tied.npz")
    assert done.returncode == 1
    assert f"error: {tmp_path}" in done.stderr and "Traceback" not in done.stderr


class StandIn:
    """What the tool calls of the official model: it reads the images' places from `media_offset` only."""

    def __init__(self, reference):
        self.reference = reference
        self.language_model = self

    def eval(self):
        return self

    def forward_image(self, pixel_values):
        return self.reference.encode_images(pixel_values.double())

    def __call__(self, input_ids, attention_mask, media_offset, image_embeds=None, output_hidden_states=True):
        outputs = self.reference.decode(input_ids[0], self.embeds(image_embeds), self.starts(media_offset))
        return SimpleNamespace(logits=outputs.logits[None], hidden_states=[state[None] for state in outputs.hidden_states])

    def generate(self, input_ids, max_new_tokens, do_sample, pad_token_id, **inputs):
        for _ in range(max_new_tokens):
            if isinstance(inputs["media_offset"], torch.Tensor):  # one row for each token
                offset = inputs["media_offset"]
                inputs["media_offset"] = torch.cat([offset, offset[:, -1:]], dim=1)[:, : input_ids.shape[1]]
            best = self(input_ids, **inputs).logits[:, -1:].argmax(dim=-1)
            input_ids = torch.cat([input_ids, best], dim=1)
        return input_ids

    def embeds(self, image_embeds):
        if image_embeds is not None:
            return image_embeds
        config = self.reference.config
        return torch.zeros(0, config.vision.tokens_per_image, config.hidden_size, dtype=torch.float64)

    def starts(self, media_offset):
        if self.reference.config.form == "joint":
            return media_offset[0]
        first, counts = media_offset[0].unbind(dim=-1)  # images of the sample: from `first` up to `counts`
        assert (first == 0).all()
        if counts[-1] < 0:
            return torch.zeros(0, dtype=torch.int64)
        return torch.repeat_interleave(torch.arange(len(counts) - 1), counts.diff())


@pytest.mark.parametrize(("form", "starts"), [("gated", [2, 5, 6]), ("gated", []), ("joint", [2, 5, 6])])
def test_against_the_official_interface(tmp_path, monkeypatch, capsys, form, starts):
    config, reference, _ = pair(form)
    save_file({name: t.float() for name, t in reference.state_dict().items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config_json(config)))
    s = sample(config, 11, starts)
    arrays = {"input_ids": s.tokens, "media_starts": s.starts, "pixel_values": s.pixels.transpose(0, 3, 1, 2)}
    np.savez(tmp_path / "cases.npz", **{f"a/{name}": value for name, value in arrays.items()})
    monkeypatch.setattr(transformers.AutoModel, "from_pretrained", lambda *_, **options: StandIn(reference))
    tool = runpy.run_path(str(TOOL))
    flags = tool["Flags"](tmp_path, tmp_path / "cases.npz", against_official=tmp_path, max_new_tokens=5)
    rows = list(tool["check"](flags))
    assert [row for row in rows if not row.agrees] == []
    layers = [f"hidden_states {n}" for n in range(config.num_hidden_layers + 1)]
    assert [row.tensor for row in rows] == [*(["image_embeds"] if starts else []), *layers, "logits", "greedy"]
    assert "top ten share 10.0" in capsys.readouterr().out
