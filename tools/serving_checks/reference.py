"""The answers that the batch engine gives to each question alone."""

from collections.abc import Iterator, Sequence

import owl3_jax
from owl3_jax.inference import buckets
from owl3_jax.inference.answers import Answer
from owl3_jax.inference.prompt_sizes import BatchSize, PromptSize
from serving_checks.questions import Question


def answers_alone(owl: owl3_jax.Owl3Checkpoint, questions: Sequence[Question]) -> Iterator[Answer]:
    """In order. All are padded to one of a few sizes, so that few programs are compiled."""
    for question in questions:
        prompt = owl.processor.prepare(question.messages())
        tokens, images = len(prompt.input_ids), len(prompt.image_starts)
        size = BatchSize(1, PromptSize(max(64, buckets.bucket(tokens, steps=1)), max(8, buckets.bucket(images, steps=1))))
        ((answer,),) = owl.engine.generate([prompt], question.sampling, size=size)
        yield answer
