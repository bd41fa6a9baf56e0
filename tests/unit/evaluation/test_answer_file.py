"""The name of the answers' file changes with all that answers depend on; a question's key with what is asked."""

import dataclasses
import os
from pathlib import Path

import tokenizers

from owl3_jax.config import EvalConfig, ModelConfig
from owl3_jax.evaluation.answer_file import answer_key, answers_path, weight_files
from owl3_jax.evaluation.asked import Asked
from owl3_jax.evaluation.data_root import DataRoot
from owl3_jax.evaluation.question import Excerpt, Question
from owl3_jax.processing.processor import Processor
from owl3_jax.processing.tokenizer import ChatTokenizer
from tests.unit.evaluation.toys import MODEL, PROCESSOR, counting, make_workdir, save_image


def path_of(checkpoint: Path, model: ModelConfig = MODEL, dtype: str = "None", processor: Processor = PROCESSOR) -> Path:
    return answers_path(Path("there"), checkpoint, model, dtype, processor)


def other_tokenizer() -> ChatTokenizer:
    tokenizer = tokenizers.Tokenizer.from_str(PROCESSOR.tokenizer.to_json())
    tokenizer.add_tokens(["mauve"])
    return ChatTokenizer(tokenizer)


def test_the_name_changes_with_all_that_answers_depend_on(tmp_path):
    checkpoint = make_workdir(tmp_path)
    paths = [
        path_of(checkpoint),
        path_of(checkpoint, model=dataclasses.replace(MODEL, rms_norm_eps=1e-5)),
        path_of(checkpoint, dtype="float32"),
        path_of(checkpoint, processor=dataclasses.replace(PROCESSOR, crop=True)),
        path_of(checkpoint, processor=dataclasses.replace(PROCESSOR, tokenizer=other_tokenizer())),
    ]
    os.utime(checkpoint / "model.safetensors", (1, 1))
    paths.append(path_of(checkpoint))
    (checkpoint / "model.safetensors").write_bytes(b"other weights")
    paths.append(path_of(checkpoint))
    assert len(set(paths)) == len(paths)
    assert all(path.parent == Path("there") and path.match("answers-*.jsonl") for path in paths)


def test_the_name_does_not_change_with_anything_else(tmp_path):
    checkpoint = make_workdir(tmp_path)
    before = path_of(checkpoint)
    (checkpoint / "eval").mkdir()
    (checkpoint / "eval" / "report.json").write_text("{}")
    assert path_of(checkpoint, processor=Processor.from_pretrained(checkpoint)) == before


def test_of_a_training_run_the_last_checkpoint_counts(tmp_path):
    for step in (9, 10):
        (tmp_path / "checkpoints" / str(step) / "params").mkdir(parents=True)
        (tmp_path / "checkpoints" / str(step) / "params" / "data").write_bytes(b"")
        (tmp_path / "checkpoints" / str(step) / "_CHECKPOINT_METADATA").write_text("{}")
    assert {path.relative_to(tmp_path).parts[1] for path in weight_files(tmp_path)} == {"10"}


def test_of_a_converted_checkpoint_the_parameters_count(tmp_path):
    for name in ("params/d/0", "params/manifest", "model.json", "unused.safetensors", "eval/report.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    found = [str(path.relative_to(tmp_path)) for path in weight_files(tmp_path)]
    assert found == ["params/d/0", "params/manifest", "unused.safetensors"]


def key(root: Path, text: str, *images: str, videos: tuple[Excerpt, ...] = (), **settings: object) -> str:
    text = "<|image|>" * len(images) + "<|video|>" * len(videos) + text
    asked = Asked(counting((1,), root / "a.png"), Question("7", text, "A", images, videos))
    return answer_key(asked, DataRoot(str(root), EvalConfig(**settings)), {})


def test_a_questions_key_changes_with_its_text_its_media_and_the_settings(tmp_path):
    for name in ("a.png", "b.png", "frames/1.png", "t.tsv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        save_image(tmp_path / name.replace(".tsv", ".png")).rename(tmp_path / name)
    make = lambda: [
        key(tmp_path, "a"),
        key(tmp_path, "b"),
        key(tmp_path, "a", "a.png"),
        key(tmp_path, "a", "b.png"),
        key(tmp_path, "a", "a.png", "b.png"),
        key(tmp_path, "a", "missing.png"),
        key(tmp_path, "a", "t.tsv#1"),
        key(tmp_path, "a", "t.tsv#2"),
        key(tmp_path, "a", videos=(Excerpt("frames", 4),)),
        key(tmp_path, "a", videos=(Excerpt("frames", 8),)),
        key(tmp_path, "a", videos=(Excerpt("frames", 8, 1.0, 2.0),)),
        key(tmp_path, "a", max_new_tokens=9),
        key(tmp_path, "a", crop=True),
    ]
    keys = make()
    assert len(set(keys)) == len(keys) and keys == make()
    for name in ("a.png", "frames/1.png", "t.tsv"):
        os.utime(tmp_path / name, (1, 1))
    changed = [number for number, (before, after) in enumerate(zip(keys, make(), strict=True)) if before != after]
    assert changed == [2, 4, 6, 7, 8, 9, 10]
