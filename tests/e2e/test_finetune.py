"""Fine-tuning as people do it: the same 40 conversations as ms-swift JSON Lines and as LLaVA JSON, learned by LoRA."""

import dataclasses
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import owl3_jax
from owl3_jax.config import Config, LoraConfig, MeshConfig, SourceConfig, TrainConfig
from owl3_jax.data.digits.images import COLOURS, digit_image, encoded_image, split_ids
from owl3_jax.data.digits.tokenizer import make_tokenizer
from owl3_jax.data.pipeline import make_train_iterator
from owl3_jax.host.command_line import load_config
from owl3_jax.inference.engine import Engine
from owl3_jax.inference.runtime import Runtime
from owl3_jax.inference.sampling import Sampling
from owl3_jax.processing.processor import Processor
from owl3_jax.training.loop import train
from owl3_jax.training.processor import make_processor
from owl3_jax.training.start import resolve_start
from tests.e2e.tools import ROOT, run_here
from tests.videos import write_video
from tests.xla_flags import FAST_TO_COMPILE

IMAGE, VIDEO = "<image>", "<video>"
STEPS = 150


@dataclasses.dataclass(frozen=True)
class Case:
    """A conversation: what is asked and answered in turns, and its media by file name."""

    turns: tuple[tuple[str, str], ...]
    images: tuple[str, ...] = ()
    videos: tuple[str, ...] = ()


def write_cases(folder: Path) -> list[Case]:
    """Eight conversations of each of five kinds, and their media."""
    cases = []
    for number, colour in enumerate(COLOURS):
        pictures = [digit_image(int(i), c) for i, c in zip(split_ids("train")[number * 5 :], [colour, *COLOURS], strict=False)]
        names = [f"{number}-{place}.png" for place in range(5)]
        for name, picture in zip(names, pictures, strict=False):
            (folder / name).write_bytes(encoded_image(picture))
        clip = write_video(folder / f"{number}.mp4", 10 * (1 + number)).name
        digits = [str(picture.digit) for picture in pictures]
        one = (f"{IMAGE}\nWhich digit is {colour}?", f"{colour} {digits[0]}")
        cases += [
            Case((one,), (names[0],)),
            Case(
                ((f"{IMAGE}{IMAGE}\nIn Image {number}, which digit? {IMAGE}", f"{digits[1]} {digits[2]}"),), tuple(names[1:4])
            ),
            Case(((f"{VIDEO}\nHow many images?", f"{number} images"),), (), (clip,)),
            Case(((f"How many is {colour} {number}?", f"the {colour} is {number}"),)),
            Case(
                (one, (f"Which image is {IMAGE}?", f"a {digits[4]}"), (f"Describe {colour}", "the image")), (names[0], names[4])
            ),
        ]
    return cases


def as_swift(case: Case) -> dict[str, object]:
    roles = itertools.cycle(("user", "assistant"))
    record: dict[str, object] = {
        "messages": [{"role": r, "content": text} for r, text in zip(roles, sum(case.turns, ()), strict=False)]
    }
    return record | ({"images": case.images} if case.images else {}) | ({"videos": case.videos} if case.videos else {})


def as_llava(number: int, case: Case) -> dict[str, object]:
    roles = itertools.cycle(("human", "gpt"))
    turns = [{"from": role, "value": text} for role, text in zip(roles, sum(case.turns, ()), strict=False)]
    media: dict[str, object] = {"image": case.images[0] if len(case.images) == 1 else case.images} if case.images else {}
    return {"id": f"{number:06}", "conversations": turns, **media, **({"video": case.videos[0]} if case.videos else {})}


@dataclasses.dataclass(frozen=True)
class Place:
    """The conversations, and the files that they are in."""

    cases: list[Case]
    folder: Path
    checkpoint: Path

    @property
    def swift(self) -> str:
        return str(self.folder / "swift.jsonl")

    @property
    def llava(self) -> str:
        return str(self.folder / "llava.json")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("conversations")
    checkpoint = Path(shutil.copytree(ROOT / "tests/golden/tiny-240728", folder / "checkpoint"))
    make_tokenizer().save(checkpoint / "tokenizer.json")
    dataclasses.replace(Processor.from_pretrained(checkpoint), crop=False).save(checkpoint)
    place = Place(write_cases(folder), folder, checkpoint)
    Path(place.swift).write_text("".join(json.dumps(as_swift(case)) + "\n" for case in place.cases))
    Path(place.llava).write_text(json.dumps([as_llava(number, case) for number, case in enumerate(place.cases)]))
    return place


def config_for(place: Place, source: str, crop: float | None = None, **data: object) -> Config:
    config = load_config(ROOT / "configs/finetune.py")
    start = dataclasses.replace(config.start, checkpoint=str(place.checkpoint))
    fields = {
        "rows": 4,
        "tokens_per_row": 192,
        "images_per_row": 12,
        "sources": (SourceConfig(source, crop=crop),),
    }
    return resolve_start(dataclasses.replace(config, start=start, data=dataclasses.replace(config.data, **(fields | data))))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"pack": False},
        {"crop": 1.0, "tokens_per_row": 384, "images_per_row": 32},
        {"tokens_per_row": 80, "too_long": "truncate"},
    ],
    ids=["packed", "alone", "crops", "cut"],
)
def test_both_files_give_the_same_batches_token_for_token(place: Place, changes: dict[str, object]) -> None:
    assert len(place.cases) == 40
    batches = []
    for source in (place.swift, place.llava):
        config = config_for(place, source, **changes)
        iterator = make_train_iterator(config.data, make_processor(config))
        batches.append(list(itertools.islice(iterator, 12)))
        iterator.close()
    for swift, llava in zip(*batches, strict=True):
        for name, value in swift._asdict().items():
            np.testing.assert_array_equal(value, getattr(llava, name), err_msg=name)
    seen = sum(int((np.diff(batch.segment_ids, prepend=0) > 0).sum()) for batch in batches[0])
    assert seen > 40, "more than one epoch"


def test_a_dry_run_says_what_would_run_and_takes_no_step(place, tmp_path, capsys):
    settings = {"start.checkpoint": place.checkpoint, "data.sources": place.swift, "train.trained": "projector", "mesh.fsdp": 4}
    settings |= {"mesh.data": 2, "data.rows": 8, "data.images_per_row": 16, "data.tokens_per_row": 256, "train.steps": 100}
    flags = [f"--config.{name}={value}" for name, value in settings.items()]
    assert run_here("train", "--dry-run", "--config", ROOT / "configs/finetune.py", "--workdir", tmp_path, *flags) == 0
    said = capsys.readouterr().out
    assert "devices: 8 cpu (cpu), mesh data 2 x fsdp 4 x tensor 1 x context 1" in said
    assert "parameters: 366,096, of which 3,136 are trained" in said
    assert re.search(r"float32  frozen   language_model/embed_tokens +320x64 +vocab embed +P\(None, 'fsdp'\)", said)
    assert re.search(r"uint8    pixels +8x16x59x59x3 +P\(\('data', 'fsdp'\),\)", said)
    assert re.search(r"memory on each device: parameters 0\.4 MB, optimizer 0\.0 MB, batch 0\.2 MB", said)
    assert re.search(r"a step: .* samples with .* tokens \(\d+% of 2,048\), .* with loss, and .* images \(\d+% of 128\)", said)
    assert re.search(r"an epoch: 40 records, about \d\.\d steps; the run's 100 steps are \d+\.\d epochs", said)
    assert [path.name for path in tmp_path.iterdir()] == ["first_batch.html"], "nothing else is written"
    page = (tmp_path / "first_batch.html").read_text()
    assert page.count('class="card"') > 8 and page.count("data:image/jpeg") > 8
    assert re.search(
        r'which digit \?\s*<img src="data:image/jpeg;base64,[^"]+" alt="image">.*<span class="loss">\d \d',
        page.replace("\n", ""),
    )


LORA = LoraConfig(rank=8, target=("language", "hyper", "projector", "vision"))


@pytest.fixture(scope="module")
def workdir(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with adapters, as the README starts one."""
    workdir = tmp_path_factory.mktemp("lora")
    settings = {
        "start.checkpoint": place.checkpoint,
        "data.sources": place.llava,
        "data.rows": 4,
        "data.tokens_per_row": 192,
        "data.images_per_row": 12,
        "lora.rank": LORA.rank,
        "lora.target": LORA.target,
        "optimizer.learning_rate": 1e-2,
        "train.steps": STEPS,
    }
    flags = [
        [f"--config.{name}", *([value] if isinstance(value, str) or not isinstance(value, tuple) else value)]
        for name, value in settings.items()
    ]
    command = [sys.executable, "train.py", "--config", "configs/finetune.py", "--workdir", workdir, *itertools.chain(*flags)]
    one_device = os.environ | {"XLA_FLAGS": FAST_TO_COMPILE}
    ended = subprocess.run([*map(str, command)], cwd=ROOT, env=one_device, capture_output=True, text=True, timeout=900)
    assert ended.returncode == 0, ended.stderr[-2000:]
    return workdir


def answers_of(engine: Engine, processor: Processor, place: Place) -> list[str]:
    """The answer to the last turn of each conversation."""
    prompts = []
    for case in place.cases:
        *earlier, (asked, _) = case.turns
        messages = [
            {"role": role, "content": text} for turn in earlier for role, text in zip(("user", "assistant"), turn, strict=True)
        ]
        text = [*messages, {"role": "user", "content": asked}]
        for tag, placeholder in ((IMAGE, "<|image|>"), (VIDEO, "<|video|>")):
            text = [message | {"content": message["content"].replace(tag, placeholder)} for message in text]
        media = [[str(place.folder / name) for name in names] for names in (case.images, case.videos)]
        prompts.append(processor.prepare(text, *[names or None for names in media]))
    return [answer.text.strip() for (answer,) in engine.generate(prompts, Sampling(max_new_tokens=8))]


def test_lora_learns_them_and_merged_and_unmerged_answers_are_equal(place, workdir, tmp_path):
    merged = owl3_jax.from_pretrained(workdir)
    processor = merged.processor
    expected = [case.turns[-1][1] for case in place.cases]
    answers = answers_of(merged.engine, processor, place)
    assert answers == expected

    settings = TrainConfig(steps=STEPS, frozen_dtype=None)
    config = dataclasses.replace(config_for(place, place.llava), lora=LORA, train=settings)
    finished = train(dataclasses.replace(config, mesh=MeshConfig(data=4, context=2)), workdir)  # whose batches have 4 rows
    params = jax.tree.map(jnp.asarray, jax.device_get(finished.params))
    unmerged = Runtime(merged.config, dataclasses.replace(merged.runtime.compute, scan_layers=True), params)
    assert answers_of(Engine(unmerged, processor.tokenizer), processor, place) == answers
    assert run_here("convert", "--from", workdir, "--to", tmp_path / "hf", "--to-hf") == 0
    exported = owl3_jax.from_pretrained(tmp_path / "hf")
    assert answers_of(exported.engine, processor, place) == answers
    assert run_here("convert", "--from", workdir, "--to", tmp_path / "adapter", "--to-hf", "--adapter") == 0
    adapted = owl3_jax.from_pretrained(place.checkpoint, adapter=tmp_path / "adapter")
    assert answers_of(adapted.engine, processor, place) == answers


def test_a_run_is_evaluated_with_its_own_config_which_names_no_model(place, workdir, tmp_path, capsys):
    run = shutil.copytree(workdir, tmp_path / "run")
    settings = {"exact_match_images": 1, "distractor_images": 1, "questions": 2, "distractor_questions": 1, "max_new_tokens": 2}
    flags = [f"--config.eval.{name}={value}" for name, value in settings.items()]
    flags += ["--tasks", "digits_exact,digits_distractors"]
    assert run_here("eval", "--config", ROOT / "configs/finetune.py", "--workdir", run, *flags) == 0
    assert "digits_exact: 4 questions" in capsys.readouterr().out
    assert json.loads((run / "eval/report.json").read_text())["tasks"]["digits_exact"]["questions"] == 4
