"""Measures the cost of int8 weights and caches: how far logits move from those of float32, on a checkpoint's own prompts.

    python tools/quantization_table.py --checkpoint DIR --jsonl requests.jsonl
    python tools/quantization_table.py --checkpoint runs/digits --images 8

                       weights      image    KL mean     KL max   top-1   answers
    float32            1.0 MiB   16.0 KiB    0.0e+00    0.0e+00  100.0%     64/64
    weights            0.3 MiB   16.0 KiB    4.2e-05    3.9e-03  100.0%     64/64
    caches             1.0 MiB    4.5 KiB    1.7e-06    1.5e-04  100.0%     64/64

The float32 model answers every prompt greedily. Each variant then reads prompts and answers through its caches, and at each
token of the answers its distribution of the next one is compared: KL divergence from float32's in nats, mean and largest, and
how often both have the same likeliest token. `answers` counts the answers that are the same when the variant decodes by itself.
`weights` is the size of the parameters, `image` that of the caches of one image.

A line of requests.jsonl has the form that `owl3 generate` reads. Without `--jsonl` the prompts are questions about held-out
handwritten digits, for a checkpoint that was trained on them. docs/inference.md shows the output.
"""

import dataclasses
import functools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array, Float

from owl3_jax import Owl3Checkpoint, from_pretrained
from owl3_jax.evaluation.data_root import DataRoot
from owl3_jax.evaluation.tasks.digits_prompts import draw_scene, draw_target, make_question, open_picture
from owl3_jax.host.progress import Progress
from owl3_jax.inference import buckets, programs
from owl3_jax.inference.caches import image_bytes
from owl3_jax.inference.context import Context
from owl3_jax.inference.engine import new_images
from owl3_jax.inference.requests import Failure, read_requests
from owl3_jax.inference.sampling import Sampling
from owl3_jax.models.owl3 import Owl3
from owl3_jax.models.qwen2 import Images, Text, TextCache
from owl3_jax.processing.processor import Prepared, Processor

Variant = Literal["weights", "caches", "both", "bfloat16", "bfloat16-both"]
VARIANTS: dict[Variant, dict[str, Any]] = {  # options of `from_pretrained`
    "weights": {"dtype": "float32", "weight_dtype": "int8"},
    "caches": {"dtype": "float32", "cache_dtype": "int8"},
    "both": {"dtype": "float32", "weight_dtype": "int8", "cache_dtype": "int8"},
    "bfloat16": {"dtype": "bfloat16"},
    "bfloat16-both": {"dtype": "bfloat16", "weight_dtype": "int8", "cache_dtype": "int8"},
}


@dataclasses.dataclass(frozen=True)
class Flags:
    """Compares logits with int8 weights and caches to those of float32."""

    checkpoint: Path  # official, converted or training run's directory
    variants: tuple[Variant, ...] = tuple(VARIANTS)  # what is int8, or bfloat16 instead of float32
    jsonl: Path | None = None  # prompts, one per line
    questions: int = 64  # questions about digits, without --jsonl
    images: int = 8  # images in each question
    max_new_tokens: int = 16  # most tokens of each answer that are compared
    seed: int = 0  # random seed of the questions


@dataclasses.dataclass(frozen=True)
class Measured:
    """Answers, logits and sizes of one variant."""

    answers: list[tuple[int, ...]]  # of its own greedy decoding
    logits: list[np.ndarray]  # [A, V] float32 for each prompt, at the tokens of the reference's answer
    weight_bytes: int
    image_bytes: int


def main() -> None:
    """Prints the table."""
    flags = tyro.cli(Flags)
    print(f"{'':<14}{'weights':>12}{'image':>11}{'KL mean':>11}{'KL max':>11}{'top-1':>8}{'answers':>10}")
    reference = None
    for name, options in [("float32", {"dtype": "float32"}), *((name, VARIANTS[name]) for name in flags.variants)]:
        owl = from_pretrained(flags.checkpoint, **options)
        prompts = list(read_prompts(flags, owl.processor))
        with Progress(len(prompts), "prompt", description=name, file=sys.stderr, keep=False) as bar:
            measured = measure(owl, prompts, reference, flags.max_new_tokens, bar)
        reference = reference or measured
        print(f"{name:<14}{line(measured, reference)}", flush=True)


def read_prompts(flags: Flags, processor: Processor) -> Iterator[Prepared]:
    """The prompts of the command line.

    Raises ValueError for a line that is not a request.
    """
    if flags.jsonl is None:
        yield from digit_prompts(flags, processor)
        return
    for request in read_requests(flags.jsonl, Sampling()):
        if isinstance(request, Failure):
            raise ValueError(f"{flags.jsonl}: {request.error}")
        yield processor.prepare(request.messages, request.images, request.videos)


def digit_prompts(flags: Flags, processor: Processor) -> Iterator[Prepared]:
    """Questions about one of several digits, by colour."""
    rng = np.random.default_rng(flags.seed)
    for number in range(flags.questions):
        question = make_question(draw_scene(rng, draw_target(rng), flags.images), "colour", name=str(number))
        yield processor.prepare(question.text, [open_picture(DataRoot(), name) for name in question.images])


def measure(
    owl: Owl3Checkpoint, prompts: Sequence[Prepared], reference: Measured | None, max_new_tokens: int, bar: Progress
) -> Measured:
    """Measures a checkpoint on the prompts; its logits are those at the reference's answers, if there is one."""
    answers, logits = [], []
    for index, prompt in enumerate(prompts):
        answers.append(owl.engine.generate([prompt], Sampling(max_new_tokens=max_new_tokens))[0][0].ids)
        logits.append(answer_logits(owl, prompt, reference.answers[index] if reference else answers[-1]))
        bar.advance()
    weights = sum(x.nbytes for x in jax.tree.leaves(owl.params))
    return Measured(answers, logits, weights, image_bytes(owl.config, owl.runtime.compute, rows=1, slots=1))


def answer_logits(owl: Owl3Checkpoint, prompt: Prepared, answer: Sequence[int]) -> np.ndarray:
    """Logits [A, V] that each of the A tokens of an answer was, or would be, chosen by; read through the caches."""
    ids = [*prompt.input_ids.tolist(), *answer[:-1]]
    context = Context.empty(owl.runtime, 1, images=len(prompt.image_starts), tokens=0)
    context.add_images([new_images(0, prompt)])
    slots = buckets.text_slots(len(ids))
    tokens = np.zeros((1, slots), np.int32)
    tokens[0, : len(ids)] = ids
    positions = jnp.arange(slots)[None]
    text = Text(jnp.asarray(tokens), positions, (positions < len(ids)).astype(jnp.int32))
    logits = owl.runtime.run_model(cached_logits, text, context.images, positions=slots)
    return np.asarray(logits[0, len(ids) - len(answer) : len(ids)])


@functools.partial(jax.jit, static_argnames="model")
def cached_logits(model: Owl3, params: programs.Params, text: Text, images: Images) -> Float[Array, "B T V"]:
    """Logits at all positions of a text that is written to a cache first."""
    cache = TextCache.empty(model.config, model.compute, *text.tokens.shape)
    x, _ = model.apply({"params": params}, text, images, cache, method="extend")
    logits: Any = model.apply({"params": params}, x, method="logits")
    return logits


def line(measured: Measured, reference: Measured) -> str:
    """A row of the table, without its name."""
    pairs = list(zip(reference.logits, measured.logits, strict=True))
    divergences = np.concatenate([kl_divergence(a, b) for a, b in pairs])
    agree = np.concatenate([a.argmax(axis=-1) == b.argmax(axis=-1) for a, b in pairs]).mean()
    same = sum(a == b for a, b in zip(reference.answers, measured.answers, strict=True))
    size = f"{measured.weight_bytes / 2**20:>8.1f} MiB{measured.image_bytes / 2**10:>7.1f} KiB"
    answers = f"{same}/{len(pairs)}"
    return f"{size}{divergences.mean():>11.1e}{divergences.max():>11.1e}{agree:>8.1%}{answers:>10}"


def kl_divergence(logits: np.ndarray, other: np.ndarray) -> np.ndarray:
    """KL divergence [A] of the `other` distributions [A, V] from the first, nats, in float64."""
    log_p, log_q = (x - np.logaddexp.reduce(x, axis=-1, keepdims=True) for x in (np.float64(logits), np.float64(other)))
    return (np.exp(log_p) * (log_p - log_q)).sum(axis=-1)


if __name__ == "__main__":
    main()
