"""Which requests share a batch, and that one that fails costs no other."""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from owl3_jax.inference.answers import Answer
from owl3_jax.inference.batcher import Ready, answer_requests, measure, similar
from owl3_jax.inference.engine import Engine, prompt_size
from owl3_jax.inference.memory import OutOfMemory
from owl3_jax.inference.prompt_sizes import BatchSize, PromptSize
from owl3_jax.inference.requests import Failure, Request
from owl3_jax.inference.sampling import Sampling
from owl3_jax.processing.images import ImageSource
from owl3_jax.processing.processor import Prepared
from tests.unit.inference.tiny_engine import engine, images, processor

SAMPLINGS = (Sampling(), Sampling(n=2, temperature=1.0), Sampling(n=2, num_beams=3))
KINDS_AND_SIZES = st.lists(st.tuples(st.sampled_from(SAMPLINGS), st.integers(0, 3), st.integers(1, 5)), max_size=20)
TWO_SIZES = [BatchSize(3, PromptSize(32, 1)), BatchSize(2, PromptSize(64, 4))]


def ready_prompt(sampling: Sampling, images: int, tokens: int) -> Ready:
    prompt = Prepared(np.zeros(tokens, np.int32), np.zeros(images, np.int32), np.zeros(tokens, np.bool_), [], 11)
    return Ready(Request(0, "", [], [], sampling), prompt)


@settings(deadline=None, max_examples=50)
@given(prompts=KINDS_AND_SIZES, batch_size=st.integers(1, 6))
def test_batches_hold_every_prompt_once_of_one_kind_and_by_size(prompts, batch_size):
    ready = [ready_prompt(*prompt) for prompt in prompts]
    batches = list(similar(ready, batch_size))
    assert sorted(id(each) for batch in batches for each in batch) == sorted(map(id, ready))
    for sampling in SAMPLINGS:
        own = [batch for batch in batches if batch[0].request.sampling == sampling]
        sizes = [(each.prompt.num_images, len(each.prompt.input_ids)) for batch in own for each in batch]
        assert sizes == sorted(sizes)
        assert [len(batch) for batch in own[:-1]] == [batch_size] * (len(own) - 1)
        assert all(len({each.request.sampling for each in batch}) == 1 for batch in own)


def request(name: str | int, pictures: Sequence[ImageSource] = (), sampling: Sampling = SAMPLINGS[0]) -> Request:
    return Request(name, "Which digit is red?", pictures, [], sampling)


def with_images(name: str | int, count: int) -> Request:
    return request(name, [Image.fromarray(image) for image in images(count)])


class Batches:
    """The batches that a made-up engine was asked for: how many prompts, the most images of one, and the size."""

    def __init__(self, fail: Callable[[Sequence[Prepared], BatchSize | None], None] = lambda prompts, size: None) -> None:
        self.asked: list[tuple[int, int, BatchSize | None]] = []
        self.engine = mock.create_autospec(Engine, instance=True)
        self.engine.generate.side_effect = self._generate
        self.engine.runtime = mock.Mock(config=mock.Mock(max_position_embeddings=512))
        self._fail = fail

    def _generate(
        self, prompts: Sequence[Prepared], samplings: Sequence[Sampling], *, size: BatchSize | None
    ) -> list[list[Answer]]:
        self.asked.append((len(prompts), max(prompt.num_images for prompt in prompts), size))
        for prompt in prompts:
            list(prompt.views())
        self._fail(prompts, size)
        return [[Answer(f" {prompt.num_images}\n", (7, 1), "stop")] for prompt in prompts]


def test_similar_prompts_share_a_batch_window_by_window_of_a_lazy_iterable():
    batches, made = Batches(), []

    def requests():
        for number in itertools.count():
            made.append(number)
            yield with_images(number, number % 4)

    records = answer_requests(batches.engine, processor(), requests(), 2)
    first = [next(records) for _ in range(8)]
    assert batches.asked == [(2, count, None) for count in (0, 0, 1, 1, 2, 2, 3, 3)]
    assert made == list(range(16)), "eight batches are read ahead"
    assert sorted(record["id"] for group in first for record in group) == made
    assert first[2][0] == {"id": 1, "answers": [{"text": "1", "finish_reason": "stop", "tokens": 2}]}


def test_batches_of_given_sizes_are_filled_and_each_prompt_is_in_the_smallest():
    batches = Batches()
    requests = [with_images(number, count) for number, count in enumerate([0, 1, 3, 1, 2, 4, 0, 1])]
    records = list(answer_requests(batches.engine, processor(), iter(requests), TWO_SIZES))
    small, large = TWO_SIZES
    assert batches.asked[:2] == [(3, 1, small), (2, 3, large)], "as soon as they are full"
    assert sorted(batches.asked[2:]) == sorted([(2, 1, small), (1, 4, large)])
    assert sorted(record["id"] for group in records for record in group) == list(range(8))


def test_answers_of_other_kinds_share_no_batch_of_a_size():
    batches = Batches()
    requests = [request(number, sampling=sampling) for number, sampling in enumerate([*SAMPLINGS, *SAMPLINGS])]
    list(answer_requests(batches.engine, processor(), requests, TWO_SIZES))
    assert batches.asked == [(2, 0, TWO_SIZES[0])] * 3


def test_sizes_are_measured_without_an_image_being_decoded_and_without_those_that_fail():
    requests = [with_images("a", 3), request("torn", [b"no image"]), request("lost", [Path("missing.jpg")])]
    no_messages = Request("empty", [], [], [], SAMPLINGS[0])
    found = list(measure(processor(), [*requests, no_messages, Failure("bad", "line")], positions=512))
    assert found[0] == prompt_size(processor().prepare("Which digit is red?", list(images(3))))
    assert [size.images for size in found] == [3, 1, 1]


@pytest.mark.parametrize("batches_of", [4, [BatchSize(4, PromptSize(64, 4))]])
def test_a_request_that_fails_costs_no_other(batches_of):
    batches = Batches()
    torn = request("torn", [b"no image"])
    requests = [with_images(0, 1), torn, with_images(1, 1), Failure("bad line", "no JSON"), with_images(2, 1)]
    records = {
        each["id"]: each for group in answer_requests(batches.engine, processor(), requests, batches_of) for each in group
    }
    assert "cannot read image 0" in records.pop("torn")["error"]
    assert records.pop("bad line")["error"] == "no JSON"
    assert {name: record["answers"][0]["text"] for name, record in records.items()} == {0: "1", 1: "1", 2: "1"}
    size = None if isinstance(batches_of, int) else batches_of[0]
    assert [each[2] for each in batches.asked] == [size] * len(batches.asked), "halves share the programs of the whole"


def test_a_batch_that_needs_too_much_memory_is_halved_without_padding():
    def fail(prompts: Sequence[Prepared], size: BatchSize | None) -> None:
        if size is not None:
            raise OutOfMemory("too large")

    batches = Batches(fail)
    (records,) = answer_requests(batches.engine, processor(), [with_images(number, 1) for number in range(3)], TWO_SIZES)
    assert [record["answers"][0]["text"] for record in records] == ["1"] * 3
    assert [(rows, size) for rows, _, size in batches.asked] == [(3, TWO_SIZES[0]), (1, None), (2, None)]


def test_padding_to_a_size_changes_no_answer():
    greedy = Sampling(max_new_tokens=5)
    requests = [with_images(number, count)._replace(sampling=greedy) for number, count in enumerate([2, 0, 1])]
    both = [
        {each["id"]: each for group in answer_requests(engine(), processor(), requests, batches) for each in group}
        for batches in (8, [BatchSize(5, PromptSize(41, 3))])
    ]
    assert both[0] == both[1]


def test_arrays_are_images_too():
    (record,) = next(answer_requests(Batches().engine, processor(), [request("x", list(np.copy(images(2))))], 8))
    assert record["answers"][0]["text"] == "2"
