"""How often inference compiles: not for another size in the same buckets, and not more often than there are buckets."""

import contextlib
import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterator

import jax
import numpy as np
import pytest

from owl3_jax.inference import beams, programs
from owl3_jax.inference.caches import empty_images, empty_text
from owl3_jax.inference.engine import Engine
from owl3_jax.inference.feature_cache import FeatureCache
from owl3_jax.inference.prompt_sizes import BatchSize, PromptSize
from owl3_jax.inference.runtime import Runtime
from owl3_jax.inference.sampling import Sampling
from owl3_jax.processing.processor import Sample
from tests.tiny import COMPUTE
from tests.unit.inference.tiny_engine import TOKENIZER, engine, engine_config, prompt, random_params

PROGRAMS = (programs.encode, programs.store, programs.prefill, programs.begin, programs.decode, beams.search)
GREEDY = Sampling(max_new_tokens=3)
DRAW = GREEDY.with_options(temperature=0.7)


def compiled() -> list[int]:
    return [program.cache_size() for program in PROGRAMS] + [empty._cache_size() for empty in (empty_text, empty_images)]


@pytest.mark.parametrize("sampling", [GREEDY, GREEDY.with_options(num_beams=2)])
def test_other_sizes_in_the_same_buckets_compile_nothing(sampling):
    engine().generate([prompt(17, range(9)), prompt(9), prompt(20)], sampling)
    before = compiled()
    engine().generate([prompt(24, range(10)), prompt(3, [0]), prompt(1, [0]), prompt(21)], sampling)
    longer = sampling.with_options(max_new_tokens=40, stop=["red"], min_new_tokens=0)
    engine().generate([prompt(5), prompt(22, range(9), seed=7), prompt(18)], longer)
    assert compiled() == before


def test_batches_of_one_size_share_their_programs():
    size = BatchSize(3, PromptSize(70, 5))
    engine().generate([prompt(70, range(5)), prompt(60, range(5)), prompt(3)], GREEDY, size=size)
    before = compiled()
    engine().generate([prompt(70, range(5))] * 2, GREEDY, size=size)
    engine().generate([prompt(1, [0]), prompt(2, [1])], GREEDY, size=size)  # as many images as the vision tower takes at once
    engine().generate([prompt(33), prompt(64)], GREEDY.with_options(max_new_tokens=9), size=size)
    assert compiled() == before


def test_other_settings_of_the_same_kind_compile_nothing():
    settings = [
        {"temperature": 0.7, "top_k": 5},
        {"temperature": 1.5, "top_p": 0.5, "seed": 3},
        {"temperature": 1.0, "min_p": 0.1},
    ]
    engine().generate([prompt(20)], GREEDY.with_options(**settings[0]))
    before = compiled()
    for options in settings[1:]:
        engine().generate([prompt(20)], GREEDY.with_options(**options))
    assert compiled() == before


def test_a_stream_and_a_whole_answer_share_their_programs():
    engine().generate([prompt(20)], GREEDY)
    before = compiled()
    assert list(engine().stream(prompt(20), GREEDY))
    assert compiled() == before


def test_many_requests_compile_no_more_than_docs_inference_says():
    r, t, i, c, e, a, k = 2, 1, 2, 2, 2, 1, 2  # sizes of batches, texts, images, chunks, encoder batches, answers; kinds
    bounds = {"encode": e, "mark_images": r * i * e, "store": r * i * e, "prefill": r * t * i * c}
    bounds |= {"begin": r * a * k, "decode": r * t * i * a * k, "empty_text": r * t, "empty_images": r * i}
    ours = engine_of_its_own()
    with counted() as compiled:
        for rows, images, sampling in itertools.product((1, 2), (0, 3), (GREEDY, DRAW)):
            ours.generate([random_prompt(images, seed) for seed in range(rows)], sampling)
        small = sum(compiled.values()) - sum(compiled[name] for name in bounds)
        for seed in range(12):
            prompts = [random_prompt((0, 3, 4)[seed % 3], seed), random_prompt(0, seed)][: 1 + seed % 2]
            ours.generate(prompts, [GREEDY, DRAW][seed // 6].with_options(max_new_tokens=1 + seed, seed=seed))
    counts = {name: compiled[name] for name in bounds}
    assert all(0 < count <= bounds[name] for name, count in counts.items()), counts
    assert sum(compiled.values()) == sum(counts.values()) + small, "nothing else depends on the sizes"


def engine_of_its_own() -> Engine:
    """One with whose programs no other test has anything to do."""
    config = dataclasses.replace(engine_config("static"), rms_norm_eps=2e-6)
    return Engine(Runtime(config, COMPUTE, random_params(config), None, 2, FeatureCache(2**20)), TOKENIZER)


def random_prompt(images: int, seed: int) -> Sample:
    """At most 24 tokens: a chunk of 16 or of 24."""
    tokens = int(np.random.default_rng(seed).integers(1, 25))
    return prompt(tokens, [tokens // 2] * images, seed)


@contextlib.contextmanager
def counted() -> Iterator[Counter[str]]:
    """How often each program is compiled inside it, jax's own ones included."""
    found: Counter[str] = Counter()

    def listen(event: str, seconds: float, **about: object) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            found[str(about["fun_name"]).removeprefix("jit(").removesuffix(")")] += 1

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
