"""One sequence of global batches, whoever makes them: hosts, worker processes and restarts change nothing."""

import hashlib
import json

import grain
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from owl3_jax.batch import Batch
from owl3_jax.config import DataConfig, SourceConfig
from owl3_jax.data.digits.builder import make_record
from owl3_jax.data.digits.images import IMAGE_SIZE, split_ids
from owl3_jax.data.digits.samples import draw_sample
from owl3_jax.data.digits.tokenizer import make_tokenizer
from owl3_jax.data.lanes import LaneState, Order, choose, state_size
from owl3_jax.data.pipeline import TrainIterator, iterate_batches
from owl3_jax.data.readers.stored import RecordSource
from owl3_jax.data.skipped import KINDS, Counts
from owl3_jax.processing.processor import Processor

PROCESSOR = Processor(make_tokenizer(), IMAGE_SIZE)
SOURCES = (SourceConfig("many", weight=2.0), SourceConfig("few", weight=1.0, loss_weight=0.5))
CONFIG = DataConfig(sources=SOURCES, rows=8, tokens_per_row=160, images_per_row=12, prefetch=1, seed=3, max_skipped=0.2)
BATCHES = 50


def stored(count: int, seed: int) -> list[dict]:
    """Records with images, of which 3 % are broken."""
    ids, rng = split_ids("train"), np.random.default_rng(seed)
    records = [make_record(draw_sample(rng, ids)) for _ in range(count)]
    for number in range(5, count, 33):
        records[number] = {**records[number], "images": [b"damaged"] * len(records[number]["images"])}
    return records


RECORDS = {
    SOURCES[0]: RecordSource(stored(600, 0), "many"),
    SOURCES[1]: RecordSource(stored(101, 1), "few"),
}


def iterator(lanes: range, states: np.ndarray | None = None, workers: int = 0) -> TrainIterator:
    config = DataConfig(**{**vars(CONFIG), "workers": workers})
    return iterate_batches(RECORDS, config, PROCESSOR, lanes, states)


def take(hosts: int, workers: int, batches: int) -> tuple[list[Batch], list[np.ndarray]]:
    """Global batches that several hosts make, and the states of all lanes after each."""
    rows = CONFIG.rows // hosts
    own = [iterator(range(host * rows, host * rows + rows), workers=workers) for host in range(hosts)]
    made, states = [], []
    for _ in range(batches):
        parts = [next(each) for each in own]
        made.append(jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts))
        states.append(np.concatenate([each.states for each in own]))
    for each in own:
        each.close()
    return made, states


def digest(batches: list[Batch]) -> str:
    found = hashlib.blake2b()
    for array in jax.tree.leaves(batches):
        found.update(f"{array.dtype} {array.shape}".encode() + array.tobytes())
    return found.hexdigest()


@pytest.fixture(scope="module")
def straight() -> tuple[list[Batch], list[np.ndarray]]:
    return take(1, 0, BATCHES)


def test_the_sequence_has_two_epochs_sources_packed_rows_and_broken_records(straight):
    batches, states = straight
    counts = Counts.total((LaneState.from_array(state, 2).counts for state in states[-1]), 2)
    assert counts.seen(1) > 2 * len(RECORDS[SOURCES[1]]) and 0.02 < counts.skipped / counts.array.sum() < 0.04
    assert set(counts.reasons(0)) == {"unreadable-image"}
    assert all((batch.segment_ids.max(axis=1) > 1).any() and set(np.unique(batch.source_ids)) == {0, 1} for batch in batches)
    share = counts.seen(0) / counts.array.sum()
    assert 0.63 < share < 0.70, "two thirds, also of samples that rows of different lengths take"


@pytest.mark.parametrize(("hosts", "workers"), [(2, 0), (4, 0), (1, 1), (1, 2), (2, 2)])
def test_hosts_and_worker_processes_make_the_same_batches(straight, hosts, workers):
    batches, states = take(hosts, workers, BATCHES)
    assert digest(batches) == digest(straight[0])
    np.testing.assert_array_equal(states, straight[1])


def test_every_step_can_be_resumed_by_any_number_of_hosts(straight):
    batches, states = straight
    for step in range(1, BATCHES):
        hosts = (1, 2, 4)[step % 3]
        rows = CONFIG.rows // hosts
        parts = []
        for first in range(0, CONFIG.rows, rows):
            resumed = iterator(range(first, first + rows), states[step - 1][first : first + rows])
            parts.append(next(resumed))
            np.testing.assert_array_equal(resumed.states, states[step][first : first + rows])
            resumed.close()
        assert digest([jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)]) == digest([batches[step]])


def test_resumed_worker_processes_go_on(straight):
    resumed = iterator(range(8), straight[1][20], workers=2)
    assert digest([next(resumed) for _ in range(3)]) == digest(straight[0][21:24])
    resumed.close()


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_a_state_comes_back_from_its_numbers(data):
    counts = np.array(
        data.draw(st.lists(st.integers(0, 9), min_size=2 + 2 * len(KINDS), max_size=2 + 2 * len(KINDS))), np.int32
    )
    pending = sorted(data.draw(st.sets(st.integers(0, 2**31 - 1), max_size=CONFIG.pack_ahead)))
    state = LaneState(data.draw(st.integers(0, 2**31 - 1)), pending, Counts(counts.reshape(2, -1)))
    array = state.to_array(CONFIG.pack_ahead)
    assert array.shape == (state_size(CONFIG),) and array.dtype == np.int32
    back = LaneState.from_array(array, 2)
    assert (back.next, back.pending) == (state.next, state.pending)
    np.testing.assert_array_equal(back.counts.array, state.counts.array)


def test_every_sample_is_in_one_lane_and_each_lane_has_all_places_of_a_block():
    order = Order(grain.MapDataset.range(1), lanes=6, seed=1)
    places = np.array([[order.place(lane, number) for lane in range(6)] for number in range(600)])
    assert sorted(places.ravel().tolist()) == list(range(3600))
    shares = np.array([(places[:, lane] % 2).mean() for lane in range(6)])
    assert (abs(shares - 0.5) < 0.08).all(), "of two sources that take turns, every lane has both"


def test_a_row_takes_the_oldest_first_and_then_what_fills_it_most():
    sizes = [(5, 1), (60, 2), (90, 1), (20, 9)]
    assert choose(sizes, (100, 10), is_empty=True) == 0
    assert choose(sizes, (95, 9), is_empty=False) == 3, "all images"
    assert choose(sizes, (95, 8), is_empty=False) == 2
    assert choose(sizes, (80, 8), is_empty=False) == 1
    assert choose(sizes, (4, 8), is_empty=False) is None
    assert choose([], (4, 8), is_empty=False) is None


def test_every_sample_is_used_in_its_turn():
    """None waits longer than the rows that those before it begin."""
    config = DataConfig(rows=1, tokens_per_row=40, images_per_row=1, prefetch=1)
    messages = [[{"role": "user", "content": "digit"}, {"role": "assistant", "content": f"{i:03d}"}] for i in range(60)]
    records = RecordSource([{"messages": json.dumps(each), "images": [], "metadata": "{}"} for each in messages], "numbered")
    made = iterate_batches({SourceConfig("numbered"): records}, config, PROCESSOR)
    states = [next(made) and made.states[0] for _ in range(40)]
    made.close()
    waits = [state[0] - min(state[1 : 1 + config.pack_ahead]) for state in states]
    assert max(waits) <= config.pack_ahead * 3
