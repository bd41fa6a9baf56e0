"""What the tests of inference share: tiny models behind an engine, prompts of random tokens and images, and whole forward
passes to compare with."""

import contextlib
import functools
import gc
import itertools
from collections.abc import Callable, Iterator, Sequence
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from owl3_jax.batch import Batch
from owl3_jax.config import Form, ModelConfig
from owl3_jax.data.digits.tokenizer import VOCAB_SIZE, make_tokenizer
from owl3_jax.inference import programs
from owl3_jax.inference.answers import Answer
from owl3_jax.inference.engine import Engine
from owl3_jax.inference.runtime import Params, Runtime
from owl3_jax.models.owl3 import abstract_params
from owl3_jax.processing.chat import IMAGE, TURN_START
from owl3_jax.processing.processor import Processor, Sample
from tests.tiny import COMPUTE, model_config

TOKENIZER = make_tokenizer()
POSITIONS = 199
_ROWS, _TOKENS, _IMAGES = 4, 64, 8  # of whole forward passes: one size for all, so that they compile once


def engine_config(form: Form) -> ModelConfig:
    """`tests.tiny`'s sizes, for the tokens of the digits data set."""
    return model_config(form, vocab_size=VOCAB_SIZE, max_position_embeddings=POSITIONS)


@functools.cache
def runtime(form: Form = "gated") -> Runtime:
    """On one device; tests share what it compiles."""
    config = engine_config(form)
    return Runtime(config, COMPUTE, random_params(config), vision_batch_size=2)


def random_params(config: ModelConfig) -> Params:
    """Noise in every parameter: numpy draws it in no time, where compiling the model's own initialisation takes seconds.

    Of special tokens only the stop ids are likely, so that answers are tokenised again as they were generated.
    """
    rng, shapes = np.random.default_rng(0), nn.unbox(abstract_params(config, COMPUTE))
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.5, x.shape), x.dtype), shapes)
    decoder = params["language_model"]
    unlikely = np.array([TOKENIZER.token_id(token) for token in ("<|unknown|>", TURN_START, IMAGE)])
    return params | {"language_model": decoder | {"lm_head": decoder["lm_head"].at[unlikely].set(0.0)}}


def engine(form: Form = "gated") -> Engine:
    return Engine(runtime(form), TOKENIZER)


def processor() -> Processor:
    return Processor(TOKENIZER, image_size=11)


def images(number: int, seed: int = 0) -> np.ndarray:
    """uint8 [I, S, S, 3] noise."""
    return np.random.default_rng(seed).integers(0, 256, (number, 11, 11, 3), np.uint8)


def prompt(tokens: int, starts: Sequence[int] = (), seed: int = 0) -> Sample:
    """`tokens` random ids and an image at each of `starts`."""
    ids = np.random.default_rng([seed, tokens]).integers(0, VOCAB_SIZE, tokens, np.int32)
    return Sample(ids, np.array(starts, np.int32), images(len(starts), seed), np.zeros(tokens, np.bool_))


def continued(prompt: Sample, ids: Sequence[int]) -> Sample:
    """The prompt with `ids` behind it."""
    return prompt._replace(input_ids=np.concatenate([prompt.input_ids, np.asarray(ids, np.int32)]))


def uncached(form: Form, samples: Sequence[Sample]) -> list[np.ndarray]:
    """Logits [T, V] of each sample, from one whole forward pass."""
    tokens, positions, segments = np.zeros((3, _ROWS, _TOKENS), np.int32)
    starts, image_segments = np.zeros((2, _ROWS, _IMAGES), np.int32)
    pixels = np.zeros((_ROWS, _IMAGES, 11, 11, 3), np.uint8)
    for row, sample in enumerate(samples):
        T, I = len(sample.input_ids), len(sample.image_starts)
        tokens[row, :T], positions[row, :T], segments[row, :T] = sample.input_ids, np.arange(T), 1
        starts[row, :I], image_segments[row, :I], pixels[row, :I] = sample.image_starts, 1, sample.pixel_values
    logits = runtime(form).run_model(programs.logits, Batch(tokens, positions, segments, pixels, starts, image_segments))
    return [np.asarray(logits[row, : len(sample.input_ids)]) for row, sample in enumerate(samples)]


def check_greedy(form: Form, prompts: Sequence[Sample], answers: Sequence[Answer], atol: float) -> None:
    """Every token is the likeliest one after those before it, and its log-probability (if there) the one of its logits."""
    whole = [continued(prompt, answer.ids) for prompt, answer in zip(prompts, answers, strict=True)]
    for prompt, answer, all_logits in zip(prompts, answers, uncached(form, whole), strict=True):
        logits = all_logits[len(prompt.input_ids) - 1 : -1]
        assert list(answer.ids) == logits.argmax(axis=-1).tolist()
        if answer.logprobs is not None:
            expected = np.asarray(jax.nn.log_softmax(logits))[np.arange(len(answer.ids)), list(answer.ids)]
            np.testing.assert_allclose(answer.logprobs, expected, rtol=0, atol=atol)


@contextlib.contextmanager
def memory_running_out(program: Callable, *, at_call: int = 1) -> Iterator[None]:
    """Inside it, `program` has taken its arguments, and asks for more memory than there is, when it is called so often."""
    calls = itertools.count(1)

    def failing(run):
        def run_and_fail(self, called, *arguments, **options):
            result = run(self, called, *arguments, **options)
            if called is program and next(calls) == at_call:
                jnp.zeros(2**45).block_until_ready()
            return result

        return run_and_fail

    runs = {name: failing(getattr(Runtime, name)) for name in ("run_model", "run_paged")}
    with mock.patch.multiple(Runtime, **runs):
        yield


def live_bytes() -> int:
    """Of all arrays on devices."""
    gc.collect()
    return sum(array.nbytes for array in jax.live_arrays())
