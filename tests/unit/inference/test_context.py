"""What a context holds after texts and images were added, in any portions, equals one whole forward pass."""

import dataclasses

import numpy as np
import pytest

from owl3_jax.inference import runtime as runtime_module
from owl3_jax.inference.caches import image_bytes
from owl3_jax.inference.context import Context, NewImages
from owl3_jax.inference.engine import Engine
from owl3_jax.inference.runtime import Runtime
from owl3_jax.inference.sampling import Sampling
from owl3_jax.models.owl3 import Owl3
from owl3_jax.models.qwen2 import unstack_layers
from tests.tiny import COMPUTE
from tests.tolerances import ENGINE_LOGITS
from tests.unit.inference.tiny_engine import TOKENIZER, images, prompt, runtime, uncached

SAMPLES = [prompt(20, [1, 5, 5], seed=1), prompt(31, [0, 2, 11, 30], seed=2)]


def empty(ours: Runtime | None = None, **room) -> Context:
    return Context.empty(ours or runtime(), 2, **({"images": 4, "tokens": 64} | room))


@pytest.fixture
def written_out(monkeypatch) -> Runtime:
    """Every layer by itself, and an image cache in blocks of two images."""
    stacked = runtime()
    per_image = image_bytes(stacked.config, COMPUTE, 1, 1) // len(stacked.config.hyper_layers)
    monkeypatch.setattr(runtime_module, "_BLOCK_BYTES", 3 * per_image)  # the power of two below
    return dataclasses.replace(
        stacked, compute=dataclasses.replace(COMPUTE, scan_layers=False), params=unstack_layers(stacked.params)
    )


def new_images(samples, start=0, end=99) -> list[NewImages]:
    """Those whose placeholders begin at positions from `start` on, before `end`."""
    chosen = [(sample.image_starts >= start) & (sample.image_starts < end) for sample in samples]
    return [
        NewImages(row, sample.image_starts[here].tolist(), sample.pixel_values[here])
        for row, (sample, here) in enumerate(zip(samples, chosen, strict=True))
    ]


def ids(samples, chosen=slice(None)) -> list[list[int]]:
    return [sample.input_ids[chosen].tolist() for sample in samples]


def check(context: Context, samples) -> None:
    model, params = Owl3(context.runtime.config, COMPUTE), {"params": runtime().params}
    logits = model.apply(params, context.last[:, None], method="logits")[:, 0]
    expected = [whole[-1] for whole in uncached("gated", samples)]
    np.testing.assert_allclose(logits, expected, rtol=0, atol=ENGINE_LOGITS)
    assert context.tokens.tolist() == [len(sample.input_ids) for sample in samples]


def test_all_at_once():
    context = empty()
    context.add_images(new_images(SAMPLES))
    context.add_text(ids(SAMPLES))
    check(context, SAMPLES)
    assert context.image_counts.tolist() == [3, 4]


def read_in_portions(ours: Runtime) -> Context:
    context = empty(ours, images=1, tokens=1)
    context.reserve(images=2, tokens=1)
    context.add_images(new_images(SAMPLES, end=5))
    context.add_text(ids(SAMPLES, slice(0, 5)))
    context.reserve(images=2, tokens=80)
    context.add_images(new_images(SAMPLES, start=5))
    for portion in (slice(5, 25), slice(25, None)):  # the first row has nothing to add to the last one
        context.add_text(ids(SAMPLES, portion))
    check(context, SAMPLES)
    assert context.image_counts.tolist() == [3, 4]
    return context


def test_in_portions_with_too_little_room_at_first(written_out):
    read_in_portions(runtime())
    context = read_in_portions(written_out)
    assert [block.images for block in context.images.blocks] == [2, 2]


def test_blocks_of_images_answer_as_one_cache(written_out):
    """Images that all rows see, some see and none sees, in blocks that are whole and in one that is not."""
    prompts, greedy = [prompt(20, [1, 5, 5, 8, 9]), prompt(31, [0, 2, 28], seed=2), prompt(9)], Sampling(max_new_tokens=9)
    assert written_out.image_blocks(5) == (2, 2, 1)
    blocks, whole = (Engine(ours, TOKENIZER).generate(prompts, greedy) for ours in (written_out, runtime()))
    assert [answer.ids for (answer,) in blocks] == [answer.ids for (answer,) in whole]


def test_forgotten_text_is_seen_by_nothing():
    context = empty(tokens=128)
    context.add_images(new_images(SAMPLES))
    context.add_text([[3] * 9, [4] * 17])
    context.forget_text(0)
    context.add_text(ids(SAMPLES, slice(0, 12)))
    context.add_text([[5] * 8, [6] * 3])
    context.forget_text(12)
    context.add_text(ids(SAMPLES, slice(12, None)))
    check(context, SAMPLES)


def test_features_that_are_encoded_already():
    context = empty()
    for row, sample in enumerate(SAMPLES):
        views = sample.pixel_values
        chunks = [runtime().features(list(views[start : start + 2]), len(views[start : start + 2])) for start in (0, 2)]
        context.add_features(row, sample.image_starts.tolist(), chunks)
    context.add_text(ids(SAMPLES))
    check(context, SAMPLES)


def test_a_stream_of_images_is_read_one_vision_batch_at_a_time():
    read, encoded, ahead = 0, 0, []

    def views():
        nonlocal read
        for view in images(7):
            read += 1
            yield view

    def advance(number):
        nonlocal encoded
        ahead.append(read - encoded)
        encoded += number

    Context.empty(runtime(), 1, images=7, tokens=1).add_images([NewImages(0, range(7), views())], advance)
    assert (read, encoded) == (7, 7)
    assert ahead == [2, 2, 2, 1] and runtime().vision_batch_size == 2


@pytest.mark.parametrize("views", [1, 3])
def test_another_number_of_images_than_placeholders_is_an_error(views):
    with pytest.raises(ValueError, match="row 1 has 2 image placeholders, but not as many images"):
        empty().add_images([NewImages(0, [0], images(1)), NewImages(1, [0, 1], images(views))])
