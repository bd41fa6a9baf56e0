"""Processors of every kind of directory."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import tokenizers

from owl3_jax.convert.directories import to_orbax
from owl3_jax.data.digits.tokenizer import VOCAB_SIZE, make_tokenizer
from owl3_jax.formats.errors import CheckpointError
from owl3_jax.processing.processor import Processor
from owl3_jax.processing.tokenizer import ChatTokenizer
from owl3_jax.processing.video_sampling import VideoSampling

GOLDEN = Path(__file__).parents[2] / "golden"


def settings(processor: Processor) -> tuple:
    return processor.style, processor.media_style, processor.crop, processor.video_sampling


@pytest.mark.parametrize(
    ("name", "media_style"), [("tiny-240728", "words"), ("tiny-241014", "markers"), ("tiny-241101", "markers")]
)
def test_official_settings_follow_from_the_form(tmp_path, name, media_style):
    official = shutil.copytree(GOLDEN / name, tmp_path / "official")
    to_orbax(official, tmp_path / "converted")
    for directory in (official, tmp_path / "converted", str(official)):
        processor = Processor.from_pretrained(directory)
        assert settings(processor) == ("chatml", media_style, True, VideoSampling())
        assert processor.image_size == json.loads((official / "config.json").read_text())["vision_config"]["image_size"]


def test_saved_settings_decide_and_need_no_model(tmp_path):
    saved = Processor(make_tokenizer(), 13, "plain", "markers", True, VideoSampling(7, "middle"))
    saved.save(tmp_path)
    read = Processor.from_pretrained(tmp_path)
    assert (settings(read), read.image_size) == (settings(saved), 13)
    official = shutil.copytree(GOLDEN / "tiny-240728", tmp_path / "official")
    saved = dataclasses.replace(saved, image_size=59)  # the model's
    saved.save(official)
    assert settings(Processor.from_pretrained(official)) == settings(saved)


def test_an_image_size_of_another_model_is_refused(tmp_path):
    official = shutil.copytree(GOLDEN / "tiny-240728", tmp_path / "official")
    to_orbax(official, tmp_path / "converted")
    for directory in (official, tmp_path / "converted"):
        Processor(make_tokenizer(), 55).save(directory)
        with pytest.raises(
            CheckpointError, match=r"processor\.json: image_size is 55, but the model's images are of 59 pixels"
        ):
            Processor.from_pretrained(directory)


@pytest.mark.parametrize("with_settings", [True, False])
def test_a_tokenizer_with_more_ids_than_the_embedding_has_rows_is_refused(tmp_path, with_settings):
    official = shutil.copytree(GOLDEN / "tiny-240728", tmp_path / "official")
    to_orbax(official, tmp_path / "converted")
    rows = json.loads((official / "config.json").read_text())["vocab_size"]
    for ids in (rows, rows + 1):
        tokenizer = tokenizer_with(ids)
        assert tokenizer.vocab_size == ids
        for directory in (official, tmp_path / "converted"):
            tokenizer.save(directory / "tokenizer.json")
            if with_settings:
                Processor(tokenizer, 59).save_settings(directory)
            if ids == rows:
                assert Processor.from_pretrained(directory).tokenizer.vocab_size == rows
                continue
            with pytest.raises(
                CheckpointError, match=rf"ids up to {rows}, model\.vocab_size {rows} is too small: .* another model"
            ):
                Processor.from_pretrained(directory)


def tokenizer_with(ids: int) -> ChatTokenizer:
    """The embedded tokenizer and more words, up to a number of ids."""
    tokenizer = tokenizers.Tokenizer.from_str(make_tokenizer().to_json())
    tokenizer.add_tokens([f"<word {index}>" for index in range(VOCAB_SIZE, ids)])
    return ChatTokenizer(tokenizer)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"croop": True}, "croop"),
        ({"image_size": 0}, "image_size is 0; it must be at least 1 pixel"),
        ({"media_style": "v3"}, "media_style"),
        ({"video_sampling": {"max_frames": 0}}, "max_frames is 0"),
        ({"video_sampling": {"frames": 1}}, "VideoSampling has no field frames"),
        ({"video_sampling": []}, r"video_sampling is \[\]; it must be an object"),
        ({"video_sampling": {"max_frames": "7"}}, 'video_sampling.max_frames is "7"; it must be an integer'),
        ({"image_size": 13.5}, "image_size is 13.5; it must be an integer"),
        ({"image_size": None}, "image_size is null; it must be an integer"),
    ],
)
def test_damaged_settings_are_named(tmp_path, change, complaint):
    Processor(make_tokenizer(), 13).save(tmp_path)
    path = tmp_path / "processor.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=rf"(?s)processor\.json does not describe a processor: .*{complaint}"):
        Processor.from_pretrained(tmp_path)
    path.write_text("[]" if "croop" in change else "{")
    with pytest.raises(ValueError, match=r"processor\.json does not describe a processor"):
        Processor.from_pretrained(tmp_path)


def test_a_directory_that_is_no_checkpoint_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="it is empty: no config"):
        Processor.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="no such directory; hub ids are not fetched"):
        Processor.from_pretrained("org/name")
    (tmp_path / "README.md").touch()
    with pytest.raises(FileNotFoundError, match=r"has no tokenizer: neither tokenizer\.json, nor vocab\.json"):
        Processor.from_pretrained(tmp_path)
    make_tokenizer().save(tmp_path / "tokenizer.json")
    with pytest.raises(ValueError, match=str(tmp_path)):
        Processor.from_pretrained(tmp_path)
