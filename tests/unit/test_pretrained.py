"""One call from a directory to answers: official and converted checkpoints, on one device and on a mesh."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import owl3_jax
from owl3_jax.config import ConfigError, MeshConfig
from owl3_jax.convert.cases import read_cases
from owl3_jax.convert.directories import to_orbax
from owl3_jax.data.digits.tokenizer import VOCAB_SIZE, make_tokenizer
from owl3_jax.formats.checkpoint import load_config
from owl3_jax.inference.sampling import Sampling
from owl3_jax.processing.processor import Sample
from owl3_jax.sharding import make_mesh
from tests.tolerances import GOLDEN_LOGITS
from tests.unit.convert.checkpoints import golden_tensors, write_checkpoint

GOLDEN = Path(__file__).parents[1] / "golden"
PICTURE = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)


def golden_sample(checkpoint: str, case: int) -> tuple[Sample, np.ndarray]:
    """A sample and its golden logits."""
    config = load_config(GOLDEN / checkpoint)
    found = read_cases(GOLDEN / f"{checkpoint}.npz", config.vision.image_size)[case]
    no_labels = np.zeros(len(found.input_ids), np.bool_)
    return Sample(found.input_ids, found.image_starts, found.pixel_values, no_labels), found.expected["logits"]


@pytest.fixture(scope="module")
def speaking(tmp_path_factory):
    """An official directory whose model knows the words of its tokenizer and no others."""
    directory = tmp_path_factory.mktemp("speaking") / "checkpoint"
    tensors = golden_tensors()
    for name in ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight"):
        tensors[name] = tensors[name][:VOCAB_SIZE].copy()
    write_checkpoint(directory, tensors)
    settings = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(settings | {"vocab_size": VOCAB_SIZE}))
    make_tokenizer().save(directory / "tokenizer.json")
    return owl3_jax.from_pretrained(directory)


@pytest.mark.parametrize(("checkpoint", "case"), [("tiny-240728", 2), ("tiny-241014", 1), ("tiny-241101", 0)])
def test_an_official_directory_gives_the_golden_logits(checkpoint, case):
    owl = owl3_jax.from_pretrained(GOLDEN / checkpoint)
    sample, expected = golden_sample(checkpoint, case)
    np.testing.assert_allclose(owl.logits(sample), expected, rtol=0, atol=GOLDEN_LOGITS)
    assert owl.config == load_config(GOLDEN / checkpoint)


def test_a_converted_directory_gives_the_same_on_a_mesh(tmp_path):
    to_orbax(GOLDEN / "tiny-240728", tmp_path / "converted")
    mesh = make_mesh(MeshConfig(data=1, fsdp=2, tensor=2, context=2))
    owl = owl3_jax.from_pretrained(tmp_path / "converted", mesh=mesh)
    sample, expected = golden_sample("tiny-240728", 2)
    np.testing.assert_allclose(owl.logits(sample), expected, rtol=0, atol=GOLDEN_LOGITS)
    assert {len(x.sharding.device_set) for x in jax.tree.leaves(owl.params)} == {8}
    kernel = owl.params["language_model"]["layers_0"]["mlp"]["up_proj"]["kernel"]  # [E, F] over fsdp 2, tensor 2
    assert kernel.addressable_shards[0].data.shape == (64 // 2, 128 // 2)


def test_generate_stream_and_session_give_one_answer(speaking):
    sampling = Sampling(max_new_tokens=6)
    answer = speaking.generate("Which digit is red?", images=[PICTURE], sampling=sampling)
    assert answer
    assert "".join(speaking.stream("Which digit is red?", images=[PICTURE], sampling=sampling)).strip() == answer
    assert speaking.session().ask("Which digit is red?", [PICTURE], sampling=sampling).strip() == answer
    sample = speaking.processor("Which digit is red?", images=[PICTURE])
    assert speaking.engine.generate([sample], sampling)[0][0].text.strip() == answer


def test_several_answers_are_a_list_and_log_probabilities_are_elsewhere(speaking):
    options = {"max_new_tokens": 4, "temperature": 1.0, "seed": 1}
    texts = speaking.generate("Which digit is red?", images=PICTURE, n=3, **options)
    sample = speaking.processor("Which digit is red?", images=PICTURE)
    answers = speaking.engine.generate([sample], Sampling(n=3, logprobs=True, **options))[0]
    assert texts == [answer.text.strip() for answer in answers] and len(texts) == 3
    assert all(len(answer.logprobs) == len(answer.ids) for answer in answers)
    with pytest.raises(ConfigError, match=r"owl\.engine\.generate\("):
        speaking.generate("Which digit is red?", images=PICTURE, logprobs=True)
    with pytest.raises(ValueError, match=r"Engine\.generate"):
        next(speaking.stream("Which digit is red?", images=PICTURE, logprobs=True))


def test_a_last_assistant_message_is_continued(speaking):
    question = {"role": "user", "content": "Which digit is red?"}
    sampling = Sampling(max_new_tokens=6, min_new_tokens=6)
    whole = speaking.engine.generate([speaking.processor([question])], sampling)[0][0]
    tokenizer = speaking.processor.tokenizer
    begun = tokenizer.decode(whole.ids[:2])
    prompt = [question, {"role": "assistant", "content": begun}]
    ids = speaking.processor(prompt).input_ids.tolist()
    assert ids == [*speaking.processor([question]).input_ids.tolist(), *whole.ids[:2]]  # words of this tokenizer stay apart
    assert speaking.generate(prompt, max_new_tokens=4, min_new_tokens=4) == tokenizer.decode(whole.ids[2:]).strip()


def test_no_more_logits_than_positions(speaking):
    most = speaking.config.max_position_embeddings
    no_images = np.zeros((0, 8, 8, 3), np.uint8)
    sample = Sample(np.zeros(most + 1, np.int32), np.zeros(0, np.int32), no_images, np.zeros(most + 1, np.bool_))
    with pytest.raises(ValueError, match=f"the sample has {most + 1} tokens, the model has {most} positions"):
        speaking.logits(sample)


def test_options_by_name_go_before_those_of_sampling(speaking):
    ask = functools.partial(speaking.generate, "Which digit is red?", images=[PICTURE], sampling=Sampling(max_new_tokens=6))
    assert ask().startswith(ask(max_new_tokens=2))
    assert 0 < len(ask(max_new_tokens=2)) < len(ask())
    with pytest.raises(ConfigError, match="unknown sampling option 'max_tokens'; did you mean 'max_new_tokens'"):
        speaking.generate("How many images?", max_tokens=3)


def test_an_image_that_was_seen_is_not_encoded_again(speaking):
    picture = PICTURE[::-1].copy()
    speaking.generate("Which digit is red?", images=[picture], crop=False, max_new_tokens=1)
    cache = speaking.runtime.feature_cache
    hits, misses = cache.hits, cache.misses
    speaking.generate("Describe the image.", images=[picture], crop=False, max_new_tokens=1)
    assert (cache.hits, cache.misses) == (hits + 1, misses)


@pytest.mark.parametrize("dtype", ["bfloat16", "bf16", jnp.bfloat16])
def test_another_dtype(dtype):
    owl = owl3_jax.from_pretrained(GOLDEN / "tiny-240728", dtype=dtype)
    assert {x.dtype.name for x in jax.tree.leaves(owl.params)} == {"bfloat16"}
    assert owl.runtime.compute.dtype == "bfloat16"


def test_the_checkpoints_own_dtype_by_name_and_one_that_there_is_not():
    assert owl3_jax.from_pretrained(GOLDEN / "tiny-240728", dtype="auto").runtime.compute.dtype == "float32"
    with pytest.raises(ConfigError, match="float16"):
        owl3_jax.from_pretrained(GOLDEN / "tiny-240728", dtype="float16")


def test_a_directory_without_a_tokenizer_has_logits_but_no_processor(tmp_path):
    owl = owl3_jax.from_pretrained(write_checkpoint(tmp_path / "silent", golden_tensors()))
    sample, expected = golden_sample("tiny-240728", 1)
    np.testing.assert_allclose(owl.logits(sample), expected, rtol=0, atol=GOLDEN_LOGITS)
    with pytest.raises(FileNotFoundError, match="tokenizer"):
        owl.generate("What is this?")
