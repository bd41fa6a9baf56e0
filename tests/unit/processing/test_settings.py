"""Processors of every kind of directory."""

import json
import shutil
from pathlib import Path

import pytest

from owl3_jax.convert.directories import to_orbax
from owl3_jax.data.digits.tokenizer import make_tokenizer
from owl3_jax.processing.processor import Processor
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
    saved.save(official)
    assert settings(Processor.from_pretrained(official)) == settings(saved)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"croop": True}, "croop"),
        ({"image_size": 0}, "image_size is 0; it must be at least 1 pixel"),
        ({"media_style": "v3"}, "media_style"),
        ({"video_sampling": {"max_frames": 0}}, "max_frames is 0"),
        ({"video_sampling": {"frames": 1}}, "VideoSampling has no field frames"),
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
    with pytest.raises(FileNotFoundError, match=r"has no tokenizer: neither tokenizer\.json, nor vocab\.json"):
        Processor.from_pretrained(tmp_path)
    make_tokenizer().save(tmp_path / "tokenizer.json")
    with pytest.raises(ValueError, match=str(tmp_path)):
        Processor.from_pretrained(tmp_path)
