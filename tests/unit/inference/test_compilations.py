"""How often inference compiles: not for another size in the same buckets, and not more often than there are buckets."""

import numpy as np
import pytest

from owl3_jax.inference import beams, buckets, programs
from owl3_jax.inference.caches import empty_images, empty_text
from owl3_jax.inference.context import Context, NewImages
from owl3_jax.inference.sampling import Sampling
from tests.unit.inference.tiny_engine import engine, images, prompt, runtime

PROGRAMS = (programs.encode, programs.store, programs.prefill, programs.begin, programs.decode, beams.search)
GREEDY = Sampling(max_new_tokens=3)


def compiled() -> list[int]:
    return [program._cache_size() for program in (*PROGRAMS, empty_text, empty_images)]


@pytest.mark.parametrize("sampling", [GREEDY, GREEDY.with_options(num_beams=2)])
def test_other_sizes_in_the_same_buckets_compile_nothing(sampling):
    engine().generate([prompt(17, range(9)), prompt(9), prompt(20)], sampling)
    before = compiled()
    engine().generate([prompt(24, range(10)), prompt(3, [0]), prompt(1, [0]), prompt(21)], sampling)
    longer = sampling.with_options(max_new_tokens=40, stop=["red"], min_new_tokens=0)
    engine().generate([prompt(5), prompt(22, range(9), seed=7), prompt(18)], longer)
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


def test_programs_are_bounded_by_the_buckets():
    """Prefill of up to T tokens and I images: no more programs than chunk lengths x text slots x image slots."""
    sizes = [(tokens, count) for tokens in (1, 16, 17, 30, 31, 32) for count in (0, 3, 4)]
    lengths = {length for tokens, _ in sizes for length in buckets.prefill_chunks(tokens)}
    slots = {buckets.text_slots(sum(buckets.prefill_chunks(tokens))) for tokens, _ in sizes}
    image_slots = {buckets.image_slots(count) for _, count in sizes}
    before = programs.prefill._cache_size()
    for tokens, count in sizes:
        context = Context.empty(runtime("static"), 1, images=count, tokens=sum(buckets.prefill_chunks(tokens)))
        context.add_images([NewImages(0, range(count), images(count))])
        context.add_text([np.arange(tokens).tolist()])
    bound = len(lengths) * len(slots) * len(image_slots)
    assert (len(lengths), len(slots), len(image_slots)) == (3, 1, 2)
    assert 0 < programs.prefill._cache_size() - before <= bound
