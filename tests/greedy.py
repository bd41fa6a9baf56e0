"""Greedy tokens of a padded batch by the engine, for models that have no tokenizer."""

from unittest import mock

import numpy as np

from owl3_jax.batch import Batch
from owl3_jax.inference.engine import Engine
from owl3_jax.inference.prompt_sizes import BatchSize, PromptSize
from owl3_jax.inference.runtime import Runtime
from owl3_jax.inference.sampling import Sampling
from owl3_jax.processing.processor import Sample
from owl3_jax.processing.tokenizer import ChatTokenizer


def greedy_tokens(runtime: Runtime, batch: Batch, new_tokens: int) -> list[list[int]]:
    """The `new_tokens` likeliest tokens after each row of `batch`, which has one prompt a row and keeps its padding."""
    tokenizer = mock.create_autospec(ChatTokenizer, instance=True, stop_ids=())
    tokenizer.decode.return_value = ""
    rows, tokens = batch.tokens.shape
    size = BatchSize(rows, PromptSize(tokens, batch.image_positions.shape[1]))
    prompts = [_prompt(batch, row) for row in range(rows)]
    answers = Engine(runtime, tokenizer).generate(prompts, Sampling(max_new_tokens=new_tokens), size=size)
    return [list(answer.ids) for (answer,) in answers]


def _prompt(batch: Batch, row: int) -> Sample:
    text, images = batch.segment_ids[row] != 0, batch.image_segment_ids[row] != 0
    ids = np.asarray(batch.tokens[row])[text]
    return Sample(
        ids, np.asarray(batch.image_positions[row])[images], np.asarray(batch.pixels[row])[images], np.zeros(len(ids), bool)
    )
