"""The parity tool on recorded cases, and against a stand-in with the official model's interface."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file

from owl3_jax.cli import parity
from owl3_jax.config import Form
from owl3_jax.convert.cases import read_cases
from owl3_jax.data.digits.tokenizer import make_tokenizer
from owl3_jax.formats.config_json import config_json_of
from owl3_jax.processing.crops import choose_grid
from owl3_jax.processing.images import squash
from tests.parity.ladder import Pair, pair, sample

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


def test_a_file_that_holds_no_cases_is_one_sentence(tmp_path):
    np.save(tmp_path / "cases.npy", np.ones(3))
    other_size = cut_cases(tmp_path / "other.npz", "tiny-240728", "case1", pixel_values=lambda x: x[..., :-1, :-1])
    for cases, message in ((tmp_path / "cases.npy", "holds one array"), (other_size, "case1/pixel_values: shape")):
        with pytest.raises(SystemExit, match=f"^error: .*{message}"):
            parity.main(["--checkpoint", str(GOLDEN / "tiny-240728"), "--cases", str(cases)])


def test_all_cases_share_three_sets_of_programs(monkeypatch):
    """Two sizes of whole passes, and one of greedy decoding."""
    shapes, rows = set(), []
    pad, continue_ = parity.pad_cases, parity.Context.empty
    monkeypatch.setattr(parity, "pad_cases", lambda cases, **size: (shapes.add(tuple(size.values())), pad(cases, **size))[1])
    monkeypatch.setattr(parity.Context, "empty", lambda runtime, n, **size: (rows.append(n), continue_(runtime, n, **size))[1])
    found = check(checkpoint=GOLDEN / "tiny-240728", cases=GOLDEN / "tiny-240728.npz")
    assert (len(shapes), rows, len(found)) == (2, [4], 39)


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


@pytest.fixture
def official(tmp_path, monkeypatch):
    """Makes a checkpoint of a form that transformers seems to load with official code, and a tokenizer beside it."""

    def make(form: Form) -> Pair:
        built = pair(form, vocab_size=53)
        tensors = {name: tensor.float() for name, tensor in built.reference.state_dict().items()}
        save_file(tensors, tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text(json.dumps(config_json_of(built.config)))
        make_tokenizer().save(tmp_path / "tokenizer.json")
        monkeypatch.setattr(transformers.AutoModel, "from_pretrained", lambda *_, **options: StandIn(built.reference))
        return built

    return make


def check(**flags) -> list:
    """The rows that the tool prints; they must all agree."""
    rows = list(parity.check(parity.Flags(**flags)))
    assert [row for row in rows if not row.agrees] == []
    return rows


def tensors_of(config, *, images: bool) -> list[str]:
    layers = [f"hidden_states {n}" for n in range(config.num_hidden_layers + 1)]
    return [*(["image_embeds"] if images else []), *layers, "logits", "greedy"]


@pytest.mark.parametrize(("form", "starts"), [("gated", [2, 5, 6]), ("gated", []), ("joint", [2, 5, 6])])
def test_against_the_official_interface(tmp_path, official, capsys, form, starts):
    config = official(form).config
    s = sample(config, 11, starts)
    arrays = {"input_ids": s.tokens, "media_starts": s.starts, "pixel_values": s.pixels.transpose(0, 3, 1, 2)}
    np.savez(tmp_path / "cases.npz", **{f"a/{name}": value for name, value in arrays.items()})
    rows = check(checkpoint=tmp_path, cases=tmp_path / "cases.npz", against_official=tmp_path, max_new_tokens=5)
    assert [row.tensor for row in rows] == tensors_of(config, images=bool(starts))
    assert "top ten share 10.0" in capsys.readouterr().out


@pytest.mark.parametrize("form", ["static", "joint"])
def test_images_and_prompts_and_what_is_kept_of_them(tmp_path, official, form):
    config = official(form).config
    images = (tmp_path / "wide.png", tmp_path / "high.png")
    for seed, (path, shape) in enumerate(zip(images, ((20, 40, 3), (50, 30, 3)), strict=True)):
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, np.uint8)).save(path)
    prompts = ("Which digit is red?", "In Image 1: <|image|>, which digit is red? Image 2: <|image|>")
    kept = tmp_path / "kept.npz"
    flags = {"checkpoint": tmp_path, "prompts": prompts, "images": images, "crop": True}
    rows = check(**flags, against_official=tmp_path, save_cases=kept, max_new_tokens=3)
    assert [row.case for row in rows if row.tensor == "logits"] == ["prompt1", "prompt2"]

    cases = read_cases(kept, config.vision.image_size)
    views = [rows * columns + 1 for rows, columns in (choose_grid(40, 20, 11), choose_grid(30, 50, 11))]
    assert [len(case.image_starts) for case in cases] == [sum(views)] * 2
    assert squash(Image.open(images[1]), 11).tolist() == np.rint((cases[0].pixel_values[-1] + 1) * 127.5).tolist()
    assert [row.tensor for row in check(checkpoint=tmp_path, cases=kept)] == tensors_of(config, images=True) * 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({}, "either --cases FILE.npz or --prompts"),
        ({"cases": Path("a.npz"), "prompts": ("a",)}, "either --cases FILE.npz or --prompts"),
        ({"cases": Path("a.npz"), "images": (Path("a.png"),)}, "--images go with --prompts"),
        ({"prompts": ("a",)}, "need --against-official DIR"),
        ({"cases": Path("a.npz"), "save_cases": Path("b.npz")}, "need --against-official DIR"),
    ],
)
def test_flags_that_leave_nothing_to_compare(flags, message):
    with pytest.raises(ValueError, match=message):
        parity.Flags(checkpoint=Path("a"), **flags)
