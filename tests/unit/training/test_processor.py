"""The processor that a run trains with: by default the one of the digits, otherwise the one that its config describes."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from owl3_jax.config import Config, ConfigError, DataConfig, ProcessorConfig
from owl3_jax.data.digits.tokenizer import VOCAB_SIZE, make_tokenizer
from owl3_jax.processing.processor import Processor
from owl3_jax.processing.video_sampling import VideoSampling
from owl3_jax.training.processor import make_processor
from tests import tiny


def config_of(vocab_size: int = VOCAB_SIZE, **processor: Any) -> Config:
    model, data = tiny.model_config("gated", vocab_size=vocab_size), DataConfig(tokens_per_row=13)
    return Config(model=model, processor=ProcessorConfig(**processor), data=data)


def settings_of(processor: Processor) -> dict[str, Any]:
    return {field.name: getattr(processor, field.name) for field in dataclasses.fields(processor) if field.name != "tokenizer"}


def test_by_default_images_are_whole_and_the_tokenizer_is_the_one_of_the_digits() -> None:
    config = config_of()
    processor = make_processor(config)
    assert settings_of(processor) == settings_of(Processor(make_tokenizer(), config.model.vision.image_size))
    assert processor.tokenizer.to_json() == make_tokenizer().to_json()


def test_every_setting_reaches_the_processor_and_comes_back_from_the_workdir(tmp_path: Path) -> None:
    config = config_of(style="plain", media_style="markers", crop=True, max_frames=7, frame_rule="middle")
    expected = {
        "image_size": config.model.vision.image_size,
        "style": "plain",
        "media_style": "markers",
        "crop": True,
        "video_sampling": VideoSampling(7, "middle"),
    }
    assert settings_of(make_processor(config)) == expected
    make_processor(config).save(tmp_path)
    assert settings_of(Processor.from_pretrained(tmp_path)) == expected


def test_a_tokenizer_from_a_file_or_directory(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    make_tokenizer().save(path)
    tree = json.loads(path.read_text())
    tree["model"]["vocab"]["zebra"] = VOCAB_SIZE
    path.write_text(json.dumps(tree))
    for name in (path, tmp_path):
        tokenizer = make_processor(config_of(VOCAB_SIZE + 1, tokenizer=str(name))).tokenizer
        assert tokenizer.token_id("zebra") == VOCAB_SIZE


def test_an_embedding_with_too_few_rows_is_refused() -> None:
    with pytest.raises(ConfigError, match=rf"the tokenizer has ids up to {VOCAB_SIZE - 1}, model\.vocab_size 47 is too small"):
        make_processor(config_of(VOCAB_SIZE - 1))


def test_a_tokenizer_that_is_not_there_or_damaged_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"processor\.tokenizer 'digit' is neither 'digits' nor the path of a tok.*: digit has"
    ):
        make_processor(config_of(tokenizer="digit"))
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ConfigError, match=r"tokenizer\.json is not a readable tokenizer\.json"):
        make_processor(config_of(tokenizer=str(tmp_path)))
