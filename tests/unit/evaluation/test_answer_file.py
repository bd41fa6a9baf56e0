"""The name of the answers' file changes with all that answers depend on; a prompt's digest with what is asked."""

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from owl3_jax.config import Config
from owl3_jax.evaluation.answer_file import answers_path, prompt_digest, weight_files
from owl3_jax.evaluation.task import Prompt
from owl3_jax.inference.sampling import Sampling
from owl3_jax.processing.processor import Processor
from owl3_jax.processing.tokenizer import ChatTokenizer
from tests.unit.evaluation.toys import CONFIG, PROCESSOR, make_workdir, save_image


def path_of(checkpoint: Path, config: Config = CONFIG, processor: Processor = PROCESSOR, **sampling: object) -> Path:
    return answers_path(Path("there"), checkpoint, config, processor, Sampling().with_options(**sampling))


def other_tokenizer() -> ChatTokenizer:
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_str(PROCESSOR.tokenizer.to_json())
    tokenizer.add_tokens(["mauve"])
    return ChatTokenizer(tokenizer)


def test_the_name_changes_with_all_that_answers_depend_on(tmp_path):
    checkpoint = make_workdir(tmp_path)
    model, compute = CONFIG.model, CONFIG.compute
    paths = [
        path_of(checkpoint),
        path_of(checkpoint, max_new_tokens=9),
        path_of(checkpoint, config=dataclasses.replace(CONFIG, model=dataclasses.replace(model, rms_norm_eps=1e-5))),
        path_of(checkpoint, config=dataclasses.replace(CONFIG, compute=dataclasses.replace(compute, dtype="float32"))),
        path_of(checkpoint, config=dataclasses.replace(CONFIG, compute=dataclasses.replace(compute, param_dtype="bfloat16"))),
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
    compute = dataclasses.replace(CONFIG.compute, remat="none", images_per_chunk=3)
    config = dataclasses.replace(CONFIG, compute=compute, eval=dataclasses.replace(CONFIG.eval, batch_shapes=1, questions=7))
    assert path_of(checkpoint, config=config, processor=Processor.from_pretrained(checkpoint)) == before


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


def digest(text: str, *images: object, videos: tuple[object, ...] = ()) -> str:
    return prompt_digest(Prompt("any", [{"role": "user", "content": text}], None, images, videos))


def test_a_prompts_digest_changes_with_its_text_and_its_media(tmp_path):
    path, other = save_image(tmp_path / "a.png"), save_image(tmp_path / "b.png")
    frames = [Image.new("RGB", (2, 3)), Image.new("RGB", (3, 2))]
    digests = [
        digest("a"),
        digest("b"),
        digest("a", path),
        digest("a", other),
        digest("a", path, other),
        digest("a", tmp_path / "missing.png"),
        digest("a", b"encoded"),
        digest("a", frames[0]),
        digest("a", frames[1]),
        digest("a", np.zeros((2, 3, 3), np.uint8)),
        digest("a", np.zeros((3, 2, 3), np.uint8)),
        digest("a", videos=(frames,)),
        digest("a", videos=(frames[:1], frames[1:])),
    ]
    assert len(set(digests)) == len(digests)
    assert digest("a", str(path)) == digest("a", path)
    assert digest("a", Image.new("RGB", (2, 3))) == digest("a", frames[0])
    os.utime(path, (1, 1))
    assert digest("a", path) != digests[2]


@pytest.mark.parametrize("kind", [str, Path])
def test_a_folder_of_frames_is_a_video(tmp_path, kind):
    assert digest("a", videos=(kind(tmp_path),)) == digest("a", videos=(tmp_path,))
