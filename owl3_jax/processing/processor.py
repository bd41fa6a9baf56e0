"""From messages, images and videos to what the model reads: one `Sample` per conversation."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np
from jaxtyping import Bool, Int32, UInt8

from owl3_jax.config import ChatStyle, MediaStyle
from owl3_jax.formats.bundled import find_checkpoint
from owl3_jax.formats.checkpoint import check_path, describes_model, load_config
from owl3_jax.processing.chat import IMAGE, VIDEO, Message, chat_chunks, find_placeholders
from owl3_jax.processing.conversation import as_conversation
from owl3_jax.processing.crops import choose_grid
from owl3_jax.processing.images import ImageSource, upright_size
from owl3_jax.processing.location import display_name
from owl3_jax.processing.media import Clip, Picture
from owl3_jax.processing.settings import (
    SETTINGS,
    check_fit,
    naming_damage,
    read_settings,
    settings_of_checkpoint,
    write_settings,
)
from owl3_jax.processing.tokenizer import ChatTokenizer
from owl3_jax.processing.tokenizer_files import FAST, read_tokenizer
from owl3_jax.processing.video import VideoSource, open_video
from owl3_jax.processing.video_sampling import VideoSampling


class Sample(NamedTuple):
    """One conversation with its images; crops and video frames count as images."""

    input_ids: Int32[np.ndarray, " T"]
    image_starts: Int32[np.ndarray, " I"]  # index of the first token of each placeholder
    pixel_values: UInt8[np.ndarray, "I S S 3"]
    labels: Bool[np.ndarray, " T"]  # True where the token has loss


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A `Sample` whose images are not decoded yet."""

    input_ids: Int32[np.ndarray, " T"]
    image_starts: Int32[np.ndarray, " I"]
    labels: Bool[np.ndarray, " T"]
    media: Sequence[Picture | Clip]  # in text order
    image_size: int  # S, pixels

    @property
    def num_images(self) -> int:
        """I of the glossary: crops and video frames count as images."""
        return len(self.image_starts)

    def views(self, *, skip: int = 0) -> Iterator[UInt8[np.ndarray, "S S 3"]]:
        """All images in order but the first `skip`; one is decoded when its turn comes.

        A picture or video all of whose views are skipped is not opened. Raises UnreadableImage or UnreadableVideo when one
        can't be read.
        """
        for medium in self.media:
            if skip < medium.num_views:
                yield from itertools.islice(medium.views(self.image_size), skip, None)
            skip = max(0, skip - medium.num_views)

    def read(self) -> Sample:
        """The sample, with all images decoded. Raises UnreadableImage or UnreadableVideo."""
        pixels = np.empty((self.num_images, self.image_size, self.image_size, 3), np.uint8)
        for slot, view in zip(pixels, self.views(), strict=True):
            slot[...] = view
        return Sample(self.input_ids, self.image_starts, pixels, self.labels)

    def as_draft(self) -> "Prepared":
        """The same, with large JPEG files decoded at a fraction of their size (see `load_image`)."""
        pictures = [dataclasses.replace(each, draft=True) if isinstance(each, Picture) else each for each in self.media]
        return dataclasses.replace(self, media=pictures)

    def truncated(self, tokens: int, images: int, end_id: int) -> "Prepared | None":
        """The longest beginning of at most `tokens` and `images` that ends with a whole answer, and has something to learn.

        Where no whole answer fits, the end of the first one is left out. None when its beginning does not fit, either.

        Args:
            tokens, images: what there is room for.
            end_id: the token that ends every answer, `<|endoftext|>`.
        """
        ends = (np.flatnonzero(self.input_ids == end_id) + 1).tolist()
        first = int(np.argmax(self.labels)) if self.labels.any() else len(self.labels)  # token with loss
        fits = lambda end: end <= tokens and int(np.sum(self.image_starts < end)) <= images
        whole = max((end for end in ends if fits(end)), default=0)
        if first < whole:
            return self._cut(whole)
        in_first_answer = fits(first + 1) and not any(end <= first for end in ends)
        return self._cut(min(tokens, *ends)) if in_first_answer else None

    def _cut(self, end: int) -> "Prepared":
        kept = int(np.sum(self.image_starts < end))
        views = np.cumsum([medium.num_views for medium in self.media])
        return dataclasses.replace(
            self,
            input_ids=self.input_ids[:end],
            image_starts=self.image_starts[:kept],
            labels=self.labels[:end],
            media=self.media[: int(np.searchsorted(views, kept, side="left")) + 1] if kept else [],
        )


@dataclasses.dataclass(frozen=True)
class Processor:
    """Makes samples for one checkpoint. Holds no state and never changes its input."""

    tokenizer: ChatTokenizer
    image_size: int  # S, pixels
    style: ChatStyle = "chatml"
    media_style: MediaStyle = "words"  # what crops and videos become in the text
    crop: bool = False  # unless a call specifies it
    video_sampling: VideoSampling = dataclasses.field(default_factory=VideoSampling)

    def __post_init__(self) -> None:
        if self.image_size < 1:
            raise ValueError(f"image_size is {self.image_size}; it must be at least 1 pixel")
        for name, allowed in (("style", get_args(ChatStyle)), ("media_style", get_args(MediaStyle))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(allowed)}")

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> "Processor":
        """The processor of a checkpoint directory: official, converted, a training run's, or one that ships with the package.

        Its settings are those of processor.json, or else those that follow from the model (`settings_of_checkpoint`). A
        directory with tokenizer and processor.json needs no model; if there is one, they must fit it.

        Raises:
            FileNotFoundError: the directory has no tokenizer.
            ValueError: a file is damaged, or (CheckpointError) the directory holds no model, or one that the tokenizer or
                processor.json does not fit.
        """
        directory = find_checkpoint(directory)
        check_path(directory)
        tokenizer, path = read_tokenizer(directory), directory / SETTINGS
        if path.exists():
            with naming_damage(path):
                processor = cls(tokenizer, **read_settings(path))
            model = load_config(directory) if describes_model(directory) else None
        else:
            model = load_config(directory)
            processor = cls(tokenizer, **settings_of_checkpoint(directory, model))
        if model:
            check_fit(directory, model, tokenizer, processor.image_size)
        return processor

    def save(self, directory: str | Path) -> None:
        """Writes tokenizer.json and processor.json, from which `from_pretrained` makes the same processor."""
        self.save_settings(directory)
        self.tokenizer.save(Path(directory) / FAST)

    def save_settings(self, directory: str | Path) -> None:
        """Writes processor.json alone, for a directory that has the tokenizer's files already."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "tokenizer"}
        write_settings(Path(directory) / SETTINGS, fields)

    def __call__(
        self,
        messages: object,
        images: object = None,
        videos: object = None,
        crop: bool | None = None,
        *,
        training: bool = False,
        parse_special_tokens: bool = False,
    ) -> Sample:
        """Processes one conversation.

        Args:
            messages: `{"role", "content"}` each, with one `<|image|>` or `<|video|>` in user text per image or video, or with
                contents in parts (`owl3_jax.processing.conversation`); or a question as a string. A string without
                placeholders gets them at its start, one per line. A prompt may end with an assistant message: the answer
                continues it.
            images: `ImageSource`s (paths, encoded bytes, Pillow images, uint8 arrays [height, width, 3]) in text order, or one.
            videos: `VideoSource`s (files, folders or lists of frames) in text order, or the path of one.
            crop: whether images are seen in crops too; `self.crop` by default. Off whenever there is a video and
                `media_style` is "words": 7B-240728 was not trained on both together.
            training: True for a sample with its answers, False for a prompt that is to be answered (see `chat_chunks`).
            parse_special_tokens: whether text that spells a special token becomes it (see `ChatTokenizer.encode`).

        Raises:
            ValueError: the messages are malformed; images or videos and their placeholders differ in number.
            UnreadableImage, UnreadableVideo: one of them can't be decoded (both are ValueErrors too).
        """
        prepared = self.prepare(messages, images, videos, crop, training=training, parse_special_tokens=parse_special_tokens)
        return prepared.read()

    def prepare(
        self,
        messages: object,
        images: object = None,
        videos: object = None,
        crop: bool | None = None,
        *,
        training: bool = False,
        parse_special_tokens: bool = False,
    ) -> Prepared:
        """`__call__` without the pixels, so that a long video can be fed frame by frame; takes and raises the same.

        No pixels are kept: images that are to be cropped are opened for their size, videos for their number of frames.
        """
        messages, images, videos = as_conversation(messages, images, videos)
        placeholders = find_placeholders(messages, self.style, training=training)
        _check_count(placeholders, IMAGE, len(images), "images")
        _check_count(placeholders, VIDEO, len(videos), "videos")
        wants_crops = self.crop if crop is None else crop
        pictures = self._pictures(images, crop=wants_crops and not (videos and self.media_style == "words"))
        by_placeholder: dict[str, Iterator[Picture | Clip]] = {IMAGE: pictures, VIDEO: self._clips(videos)}
        media = [next(by_placeholder[placeholder]) for placeholder in placeholders]
        return self.encode(messages, media, training=training, parse_special_tokens=parse_special_tokens)

    def encode(
        self,
        messages: Sequence[Message],
        media: Sequence[Picture | Clip],
        *,
        training: bool = False,
        parse_special_tokens: bool = False,
    ) -> Prepared:
        """The last step of `prepare`: a conversation whose images and videos are opened already, in text order."""
        pieces = [medium.chunks(self.media_style) for medium in media]
        chunks = chat_chunks(messages, training=training, style=self.style, media=pieces)
        text = self.tokenizer.encode(chunks, parse_special_tokens=parse_special_tokens)
        return Prepared(text.input_ids, text.image_starts, text.labels, media, self.image_size)

    def _pictures(self, images: Sequence[ImageSource], *, crop: bool) -> Iterator[Picture]:
        for index, source in enumerate(images):
            name = display_name(index, source)
            yield Picture(source, name, choose_grid(*upright_size(source, name), self.image_size) if crop else None)

    def _clips(self, videos: Sequence[VideoSource]) -> Iterator[Clip]:
        for index, source in enumerate(videos):
            yield Clip(open_video(source, self.video_sampling, display_name(index, source)))


def _check_count(placeholders: Sequence[str], placeholder: str, given: int, kind: str) -> None:
    wanted = placeholders.count(placeholder)
    if wanted != given:
        raise ValueError(
            f"the messages have {wanted} {placeholder} placeholders, but {given} {kind} were given; "
            f"user text needs one {placeholder} where each of the {kind} belongs"
        )
