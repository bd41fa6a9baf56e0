"""Chosen tokens: against transformers' processors, against probabilities, and row by row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from transformers.generation import logits_process

from owl3_jax.inference.choose import SamplingOps, SamplingRows, adjust, choose, keep_likely, log_probability, mark_seen
from owl3_jax.inference.sampling import NAMED, Sampling
from tests.tolerances import LOG_PROBABILITY, PROBABILITY

V = 53
STOP_IDS = jnp.array([7, 11])
GREEDY = SamplingOps(sample=False, penalty=False, minimum=False, logprobs=False)
ALL = SamplingOps(sample=True, penalty=True, minimum=True, logprobs=True)
SEEDS = st.integers(0, 2**31)
OPTIONS = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 0.3, 0.7, 1.0, 1.7]),
        "top_k": st.sampled_from([0, 1, 5, 40, V, 1000]),
        "top_p": st.sampled_from([0.01, 0.5, 0.8, 0.95, 1.0]),
        "min_p": st.sampled_from([0.0, 0.05, 0.3, 1.0]),
        "repetition_penalty": st.sampled_from([0.7, 1.0, 1.05, 1.2]),
        "min_new_tokens": st.integers(0, 4),
        "seed": st.integers(0, 9),
    }
)
CHOOSE = jax.jit(choose, static_argnames="ops")
ADJUST = jax.jit(adjust, static_argnames="ops")
KEEP = jax.jit(keep_likely)


def logits_of(seed: int, rows: int, scale: float = 3.0, size: int = V) -> jax.Array:
    return jnp.asarray(scale * np.random.default_rng(seed).standard_normal((rows, size)), jnp.float32)


def seen_of(seed: int, rows: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).random((rows, V)) < 0.3)


def tokens_of(logits, samplings, *, samples=None, seen=None, step=0, ops=None):
    rows, ops = SamplingRows.of(samplings, samples), ops or SamplingOps.of(samplings)
    return np.asarray(CHOOSE(logits, seen, jnp.int32(step), STOP_IDS, rows, ops)[0]).tolist()


def in_transformers(sampling: Sampling, seen: np.ndarray, step: int) -> list[logits_process.LogitsProcessor]:
    """What transformers applies, in its order."""
    processors = [logits_process.RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)]
    prompt = int(seen.sum()) - step
    processors.append(logits_process.MinNewTokensLengthLogitsProcessor(prompt, sampling.min_new_tokens, STOP_IDS.tolist()))
    if sampling.temperature:
        processors.append(logits_process.TemperatureLogitsWarper(sampling.temperature))
        if sampling.top_k:
            processors.append(logits_process.TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            processors.append(logits_process.TopPLogitsWarper(sampling.top_p))
        processors.append(logits_process.MinPLogitsWarper(sampling.min_p))
    return processors


@given(seed=SEEDS, options=OPTIONS, step=st.integers(0, 5))
@settings(deadline=None, max_examples=150)
def test_transformers_keeps_the_same_tokens_with_the_same_probabilities(seed, options, step):
    sampling = Sampling(**options)
    logits, seen = logits_of(seed, 1), seen_of(seed, 1)
    assume(int(seen.sum()) >= step)
    scores = torch.from_numpy(np.array(logits, np.float64))
    for processor in in_transformers(sampling, np.asarray(seen), step):
        if isinstance(processor, logits_process.TopPLogitsWarper):
            sums = torch.cumsum(scores.softmax(-1).sort().values, -1)
            assume(float((sums - (1 - sampling.top_p)).abs().min()) > 1e-5)  # else rounding decides what is kept
        scores = processor(torch.from_numpy(np.flatnonzero(seen))[None], scores)

    rows = SamplingRows.of([sampling])
    ours = ADJUST(logits, seen, jnp.int32(step), STOP_IDS, rows, ALL)
    ours = KEEP(ours, rows) if sampling.temperature else ours
    assert np.isfinite(ours).tolist() == scores.isfinite().tolist()
    np.testing.assert_allclose(jax.nn.softmax(ours), scores.softmax(-1), atol=PROBABILITY, rtol=0)


@given(seed=SEEDS, top_k=st.integers(1, V + 3))
@settings(deadline=None, max_examples=30)
def test_equal_scores_are_kept_or_removed_together(seed, top_k):
    logits = jnp.round(logits_of(seed, 1))
    lowest = np.sort(logits[0])[::-1][min(top_k, V) - 1]
    kept = np.isfinite(KEEP(logits, SamplingRows.of([Sampling(temperature=1.0, top_k=top_k)])))
    assert kept.tolist() == np.asarray(logits >= lowest).tolist()


def test_top_p_counts_what_top_k_kept():
    logits = jnp.log(jnp.array([[0.4, 0.2, 0.15, 0.15, 0.1]]))
    kept = lambda **options: np.isfinite(KEEP(logits, SamplingRows.of([Sampling(temperature=1.0, **options)])))[0].sum()
    assert kept(top_p=0.65) == 4  # with both of the equal ones
    assert kept(top_k=2, top_p=0.65) == 1  # 0.4 is two thirds of 0.6
    assert kept(top_k=2, top_p=0.68) == 2


@pytest.mark.parametrize("temperature", [1e-3, 1e3])
@pytest.mark.parametrize("scale", [0.0, 1e-3, 1e3, 1e30])
def test_some_token_is_always_kept(temperature, scale):
    options = {"temperature": temperature, "top_k": 1, "top_p": 1e-30, "min_p": 1.0}
    logits = logits_of(0, 1, scale)
    scores = KEEP(logits, SamplingRows.of([Sampling(**options)]))
    assert np.isfinite(scores).tolist() == np.asarray(logits == logits.max()).tolist()


@pytest.mark.parametrize("size", [V, 1100])  # in one block, and in three, of which the last is padded
@pytest.mark.parametrize(
    "sampling", [Sampling(temperature=0.8), Sampling(temperature=1.3, top_k=9, top_p=0.9, min_p=0.02)], ids=["all", "filtered"]
)
def test_tokens_are_drawn_as_often_as_their_probability_says(sampling, size):
    draws, logits = 4000, logits_of(5, 1, 1.0, size) + jnp.linspace(0, 6, size) * (size > V)
    weights = np.exp(np.asarray(KEEP(logits, SamplingRows.of([sampling]))[0], np.float64))
    expected = draws * weights / weights.sum()
    often = expected >= 5  # what the test's approximation asks for; all others count together
    groups = lambda each: np.append(each[often], [each[~often].sum()] if expected[~often].any() else [])
    tiled = jnp.tile(logits, (draws, 1))
    over_samples = tokens_of(tiled, [sampling] * draws, samples=range(draws))
    over_seeds = tokens_of(tiled, [sampling.with_options(seed=seed) for seed in range(draws)], step=3)
    one_row = lambda step: CHOOSE(logits, None, step, STOP_IDS, SamplingRows.of([sampling]), SamplingOps.of([sampling]))[0][0]
    over_steps = jax.jit(lambda steps: jax.lax.map(one_row, steps))(jnp.arange(draws))
    for tokens in (over_samples, over_seeds, over_steps):
        counts = np.bincount(tokens, minlength=size)
        assert not counts[expected == 0].any()
        # All is seeded: this either always passes or never does.
        assert chisquare(groups(counts), groups(expected)).pvalue > 0.01


@given(seed=SEEDS, options=st.lists(OPTIONS, min_size=1, max_size=5), data=st.data())
@settings(deadline=None, max_examples=15)
def test_a_row_does_not_depend_on_the_others(seed, options, data):
    R, samplings = len(options), [Sampling(**row) for row in options]
    logits, seen, samples = logits_of(seed, R), seen_of(seed, R), list(range(R))
    whole = tokens_of(logits, samplings, samples=samples, seen=seen, step=2, ops=ALL)
    order = data.draw(st.lists(st.sampled_from(samples), min_size=1, unique=True))
    chosen, numbers = [samplings[row] for row in order], [samples[row] for row in order]
    index = jnp.array(order)
    assert tokens_of(logits[index], chosen, samples=numbers, seen=seen[index], step=2) == [whole[row] for row in order]


def test_answers_to_one_prompt_differ_and_repeat():
    logits, samplings = jnp.tile(logits_of(1, 1, 0.1), (8, 1)), [Sampling(temperature=1.0, seed=4)] * 8
    tokens = tokens_of(logits, samplings, samples=range(8))
    assert len(set(tokens)) > 4
    assert tokens_of(logits, samplings, samples=range(8)) == tokens
    assert len(set(tokens_of(logits, samplings))) == 1


@given(seed=SEEDS)
@settings(deadline=None, max_examples=20)
def test_temperature_zero_is_the_lowest_of_the_most_likely_even_among_drawn_rows(seed):
    logits = jnp.round(logits_of(seed, 3, 1.0))  # many are equal
    most_likely = [int(np.flatnonzero(row == row.max())[0]) for row in np.asarray(logits)]
    greedy, drawn = Sampling(), Sampling(temperature=1.0)
    assert tokens_of(logits, [greedy] * 3) == most_likely
    mixed = tokens_of(logits, [greedy, drawn, greedy])
    assert [mixed[0], mixed[2]] == [most_likely[0], most_likely[2]]


def test_log_probabilities_are_the_models_own():
    logits, seen = logits_of(2, 3), jnp.ones((3, V), jnp.bool_)
    samplings = [Sampling(logprobs=True), NAMED["chat"], Sampling(repetition_penalty=3.0, min_new_tokens=4)]
    rows = SamplingRows.of(samplings)
    token, log_probabilities = CHOOSE(logits, seen, jnp.int32(0), STOP_IDS, rows, SamplingOps.of(samplings))
    expected = torch.from_numpy(np.array(logits, np.float64)).log_softmax(-1).numpy()[np.arange(3), np.asarray(token)]
    np.testing.assert_allclose(log_probabilities, expected, atol=LOG_PROBABILITY, rtol=0)
    assert log_probability(logits.astype(jnp.bfloat16), token).dtype == jnp.float32
    assert CHOOSE(logits, None, jnp.int32(0), STOP_IDS, rows, GREEDY)[1] is None


def test_a_penalty_without_the_tokens_so_far_is_refused():
    with pytest.raises(ValueError, match="needs `seen`"):
        tokens_of(logits_of(0, 1), [Sampling()], ops=ALL)


def test_a_program_holds_what_its_rows_ask_for():
    assert SamplingOps.of([Sampling()]) == GREEDY
    options = [{"temperature": 1.0}, {"repetition_penalty": 1.1}, {"min_new_tokens": 1}, {"logprobs": True}]
    for index, option in enumerate(options):
        assert SamplingOps.of([Sampling(), Sampling().with_options(**option)]) == tuple(i == index for i in range(4))
    assert SamplingOps.of([Sampling().with_options(**option) for option in options]) == ALL


def test_greedy_rows_draw_nothing():
    rows = SamplingRows.of([Sampling()])
    jaxpr = lambda ops: str(
        jax.make_jaxpr(lambda logits: choose(logits, None, jnp.int32(0), STOP_IDS, rows, ops))(logits_of(0, 1))
    )
    assert "argmax" in jaxpr(GREEDY)
    assert "random" in jaxpr(GREEDY._replace(sample=True))
    assert "random" not in jaxpr(GREEDY)


@given(seed=SEEDS)
@settings(deadline=None, max_examples=20)
def test_seen_are_the_valid_tokens(seed):
    rng = np.random.default_rng(seed)
    seen, tokens, valid = rng.random((3, V)) < 0.1, rng.integers(0, V, (3, 13)), rng.random((3, 13)) < 0.5
    expected = seen.copy()
    for row in range(3):
        expected[row, tokens[row, valid[row]]] = True
    assert (np.asarray(mark_seen(*map(jnp.asarray, (seen, tokens, valid)))) == expected).all()
