import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from owl3_jax.inference import buckets

STEPS = st.sampled_from([1, 2, 4, 8])


@given(size=st.integers(1, 10**6), steps=STEPS)
def test_a_bucket_holds_its_size_and_wastes_little(size, steps):
    held = buckets.bucket(size, steps=steps)
    assert size <= held < 2 * size
    assert size <= steps or held <= size + max(1, size // steps)
    assert buckets.bucket(held, steps=steps) == held, "a bucket's own size is in it"


@given(size=st.integers(0, 10**6), steps=STEPS)
def test_a_larger_size_has_no_smaller_bucket(size, steps):
    assert buckets.bucket(size, steps=steps) <= buckets.bucket(size + 1, steps=steps)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_doubling_has_that_many_buckets(steps):
    for low in (8, 16, 64):
        assert len({buckets.bucket(size, steps=steps) for size in range(low + 1, 2 * low + 1)}) == steps


def test_the_buckets_that_the_docs_name():
    slots = sorted({buckets.image_slots(images) for images in range(21)})
    assert slots == [0, 1, 2, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20]
    assert sorted({buckets.text_slots(tokens) for tokens in range(513)}) == [64, 96, 128, 192, 256, 384, 512]


def test_rows_suit_the_mesh():
    assert [buckets.rows(prompts) for prompts in (1, 2, 3, 5)] == [1, 2, 4, 8]
    assert [buckets.rows(prompts, divisor=6) for prompts in (1, 6, 7, 13)] == [6, 6, 12, 24]


@given(tokens=st.integers(1, 5000))
def test_prefill_reads_all_tokens_in_chunks_of_few_lengths(tokens):
    chunks = buckets.prefill_chunks(tokens)
    assert sum(chunks[:-1]) < tokens <= sum(chunks)
    assert set(chunks) <= {16, 24, 32, 48, 64, 96, 128, 192, 256} and set(chunks[:-1]) <= {buckets.PREFILL_CHUNK}
    assert all(first >= second for first, second in itertools.pairwise(chunks))
