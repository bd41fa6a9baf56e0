"""The processor of a run: made from its config, and saved with the model."""

from pathlib import Path

from owl3_jax.config import Config, ConfigError
from owl3_jax.data.digits.tokenizer import make_tokenizer
from owl3_jax.processing.processor import Processor
from owl3_jax.processing.tokenizer import ChatTokenizer
from owl3_jax.processing.tokenizer_files import read_tokenizer
from owl3_jax.processing.video_sampling import VideoSampling

DIGITS = "digits"  # the embedded tokenizer


def make_processor(config: Config) -> Processor:
    """The processor that `config.processor` describes, for images of the model's size.

    Raises ConfigError when there is no such tokenizer, or the model's embedding has fewer rows than it has ids.
    """
    settings = config.processor
    return Processor(
        _make_tokenizer(config),
        config.model.vision.image_size,
        settings.style,
        settings.media_style,
        settings.crop,
        VideoSampling(settings.max_frames, settings.frame_rule),
    )


def _make_tokenizer(config: Config) -> ChatTokenizer:
    try:
        tokenizer = _find_tokenizer(config.processor.tokenizer)
        tokenizer.check_embedding_rows(config.model.vocab_size)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return tokenizer


def _find_tokenizer(name: str) -> ChatTokenizer:
    """The embedded tokenizer, or the one of a file or directory. Raises ValueError."""
    if name == DIGITS:
        return make_tokenizer()
    try:
        return ChatTokenizer.from_file(name) if Path(name).is_file() else read_tokenizer(Path(name))
    except FileNotFoundError as error:
        raise ValueError(f"processor.tokenizer {name!r} is neither {DIGITS!r} nor the path of a tokenizer: {error}") from error
