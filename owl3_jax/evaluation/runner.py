"""Answers to many prompts of many sizes, in a few batch shapes."""

import functools
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from owl3_jax.batch import Batch
from owl3_jax.config import Config, ConfigError
from owl3_jax.evaluation.prompts import ImageFile, Prompt
from owl3_jax.evaluation.shapes import PromptSize, choose_row_sizes, smallest_fit
from owl3_jax.processing.batch import pad_batch
from owl3_jax.processing.chat import chat_chunks
from owl3_jax.processing.images import load_image
from owl3_jax.processing.processor import Processor, Sample

Generate = Callable[[Batch], np.ndarray]  # tokens of the answers [B, A] int32: a stop id, then zeros, after each
IMAGES_KEPT = 4096  # decoded; questions share pictures, and all of the held-out digits take a few MB


def answer_prompts(
    prompts: Sequence[Prompt],
    processor: Processor,
    generate: Generate,
    config: Config,
    *,
    rows_divisor: int = 1,
    advance: Callable[[int], None] = lambda answered: None,
) -> list[str]:
    """The model's answer to each prompt, in the order of `prompts`.

    Images are decoded batch by batch. Batches have `config.eval.batch_shapes` different shapes at most; their rows are a
    multiple of `rows_divisor` and hold `config.eval.images_per_batch` images at most, unless one multiple has more.

    Args:
        advance: called with the number of prompts answered, after each batch.

    Raises:
        ConfigError: a prompt is longer than the model's positions.
        UnreadableImage: an image cannot be decoded; the error names it.
    """
    answers = [""] * len(prompts)
    for row_size, members in _group_by_row_size(prompts, processor, config).items():
        rows = _rows(row_size, len(members), config.eval.images_per_batch, rows_divisor)
        for start in range(0, len(members), rows):
            chosen = members[start : start + rows]
            batch = make_batch([prompts[index] for index in chosen], processor, row_size, rows)
            for index, ids in zip(chosen, generate(batch), strict=False):  # the batch may end in rows of padding
                answers[index] = decode_answer(ids, processor)
            advance(len(chosen))
    return answers


def make_batch(prompts: Sequence[Prompt], processor: Processor, row_size: PromptSize, rows: int) -> Batch:
    """A batch of `rows` rows, the first ones with `prompts`, the others with the last prompt again."""
    samples = [_process(prompt, processor) for prompt in prompts]
    samples += [samples[-1]] * (rows - len(samples))
    batch = pad_batch(samples, tokens_per_row=row_size.tokens, images_per_row=row_size.images, image_size=processor.image_size)
    return batch._replace(loss_weights=None)


def decode_answer(ids: np.ndarray, processor: Processor) -> str:
    """The text of generated `ids` [A] up to the first stop id, without blanks around it."""
    stops = np.flatnonzero(np.isin(ids, processor.tokenizer.stop_ids))
    return processor.tokenizer.decode(ids[: stops[0]] if len(stops) else ids).strip()


def _group_by_row_size(prompts: Sequence[Prompt], processor: Processor, config: Config) -> dict[PromptSize, list[int]]:
    """Indices of the prompts that go into rows of each size."""
    sizes = [_prompt_size(prompt, processor) for prompt in prompts]
    _check_length(max(size.tokens for size in sizes), config)
    tokens_per_image = config.model.vision.tokens_per_image
    row_sizes = choose_row_sizes(sizes, config.eval.batch_shapes, tokens_per_image)
    groups: dict[PromptSize, list[int]] = {row_size: [] for row_size in row_sizes}
    for index, size in enumerate(sizes):
        groups[smallest_fit(size, row_sizes, tokens_per_image)].append(index)
    return groups


def _prompt_size(prompt: Prompt, processor: Processor) -> PromptSize:
    chunks = chat_chunks(prompt.messages, training=False, style=processor.style)
    return PromptSize(len(processor.tokenizer.encode(chunks).input_ids), len(prompt.images))


def _check_length(longest: int, config: Config) -> None:
    needed, most = longest + config.eval.max_new_tokens, config.model.max_position_embeddings
    if needed > most:
        raise ConfigError(
            f"the longest question and its answer take {needed} tokens, model.max_position_embeddings is {most}; "
            "name fewer images in eval.exact_match_images and eval.distractor_images"
        )


def _rows(row_size: PromptSize, prompts: int, images_per_batch: int, rows_divisor: int) -> int:
    allowed = images_per_batch // max(row_size.images, 1) // rows_divisor
    needed = -(-prompts // rows_divisor)
    return max(min(allowed, needed), 1) * rows_divisor


def _process(prompt: Prompt, processor: Processor) -> Sample:
    return processor(prompt.messages, [_read(file) for file in prompt.images])


@functools.lru_cache(IMAGES_KEPT)
def _read(file: ImageFile) -> Image.Image:
    return load_image(file.encoded, file.name)
