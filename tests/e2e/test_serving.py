"""`owl3 serve` as clients use it, and every bug that users of other servers have reported, each by its symptom.

| seen in | symptom | where it is tested |
|---|---|---|
| vllm#57157 | the metadata address is fetched | here; by default nothing is: unit/serving/test_fetch.py |
| lmdeploy#4761 | a redirect gets past the check | here; unit/serving/test_web_media.py |
| vllm PR #47010 | decompression bombs | here; unit/serving/test_decoding.py |
| CVE-2026-22778 | error texts tell addresses | here; unit/serving/test_decoding.py |
| vllm#10648 | image tokens in user text | here; unit/serving/test_protocol.py for all roles |
| vllm#31404 | one failure ends all requests | unit/serving/test_engine.py: test_a_failed_step_is_an_error_... |
| vllm#15294, sglang#8902 | each image leaks memory | here; unit/serving/test_decoding.py for the workers |
| sglang#2151, LMCache#4086, dynamo PR #8340 | 30x150 taken for 150x30 | here |
| llama.cpp#4194, llama-cpp-python fork#90 | wrong image for slot > 0; stale ones from the third request on | here |
| lmdeploy PR #1684 | a slow image host hangs the server | here; unit/serving/test_web_media_turns.py |
| vllm#18826 | the queue has no bound | here; unit/serving/test_engine.py |
| vllm#4795 | logprobs without top_logprobs | here; unit/serving/test_app.py |
| llama.cpp#14111 | the eleventh image is a 500 | here |
| tpu-inference#3350 | first requests compile | unit/serving/test_engine.py: test_all_programs_are_compiled_... |
| sglang-jax docs | no prefix cache with images | here; unit/serving/test_engine.py |

The fields of the API are in unit/serving/test_app.py, with the openai client too. Short runs of tools/serving_soak.py and
tools/serving_attack.py are at the end.
"""

import asyncio
import io
import random
import re
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import openai
import pytest
import serving_sharing
from openai.types.chat import ChatCompletion
from PIL import Image
from serving_checks.assault import Attacked, assault, attacked
from serving_checks.faults import png_that_claims
from serving_checks.questions import Picture, Question, Turn, data_uri, draw_picture, draw_questions
from serving_checks.reference import answers_alone
from serving_checks.soak import Plan, soak
from serving_checks.soak_report import wrong

import owl3_jax

PATIENCE = 300.0  # seconds; machines stall
QUEUED = 32
PICTURE = draw_picture(random.Random(0))
MEASURED = 10  # MiB, of pictures that a server must not keep


@pytest.fixture(scope="module")
def owl() -> owl3_jax.Owl3Checkpoint:
    return owl3_jax.from_pretrained("digits", dtype="float32")


@pytest.fixture(scope="module")
def running(tmp_path_factory) -> Iterator[Attacked]:
    """One server for all tests: what one of them breaks, the others notice."""
    flags = ("--checkpoint", "digits", "--dtype", "float32", "--sampling", "greedy", "--max-queued", QUEUED)
    with attacked(tmp_path_factory.mktemp("serving"), PICTURE, *flags) as started:
        yield started


@pytest.fixture(scope="module")
def client(running) -> Iterator[openai.OpenAI]:
    options = {"api_key": running.target.key, "max_retries": 0, "timeout": PATIENCE}
    with openai.OpenAI(base_url=f"{running.server.url}/v1", **options) as made:
        yield made


def image(content: bytes) -> dict:
    return url_part(data_uri(content))


def url_part(url: str) -> dict:
    return {"type": "image_url", "image_url": {"url": url}}


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def ask(client: openai.OpenAI, *parts: dict, text: str = "Describe the image.", **fields: object) -> ChatCompletion:
    content = [*parts, {"type": "text", "text": text}]
    options = {"model": "digits", "temperature": 0, "max_tokens": 8} | fields
    return client.chat.completions.create(messages=[{"role": "user", "content": content}], **options)


def text_of(completion: ChatCompletion) -> str | None:
    return completion.choices[0].message.content


def refusal(client: openai.OpenAI, *parts: dict, **fields: object) -> openai.APIStatusError:
    with pytest.raises(openai.APIStatusError) as caught:
        ask(client, *parts, **fields)
    return caught.value


def pictures(count: int) -> Sequence[Picture]:
    rng = random.Random(1)
    return [draw_picture(rng) for _ in range(count)]


@pytest.mark.parametrize("host", ["169.254.169.254", "2852039166", "[::ffff:169.254.169.254]", "metadata.google.internal"])
def test_the_metadata_address_of_a_cloud_is_not_fetched(client, host):
    """vllm#57157."""
    error = refusal(client, url_part(f"http://{host}/latest/meta-data/"))
    assert (error.status_code, error.param) == (400, "messages[0].content[0].image_url") and error.code.startswith("media_")


def test_a_redirect_does_not_get_past_the_check_of_addresses(client, running):
    """lmdeploy#4761."""
    allowed = text_of(ask(client, url_part(f"http://{running.target.pictures}/picture.png")))
    assert allowed == text_of(ask(client, image(PICTURE.content)))
    for place in ("to-loopback", "to-private-name", "to-metadata", "to-relative-host"):
        error = refusal(client, url_part(f"http://{running.target.pictures}/{place}"))
        assert (error.status_code, error.code) == (400, "media_refused")
    assert running.web.visits == []


def test_a_decompression_bomb_is_one_bad_request(client):
    """vllm PR #47010."""
    zeros = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(zeros, "png")
    for bomb in (zeros.getvalue(), png_that_claims(100_000, 100_000)):
        error = refusal(client, image(bomb))
        assert (error.status_code, error.code) == (400, "image_too_large")
    assert text_of(ask(client, image(PICTURE.content)))


def test_the_error_of_an_invalid_image_tells_no_address_and_no_path(client):
    """metasploit-framework PR #21592, CVE-2026-22778: Pillow names the object that it could not read."""
    for content in (b"no image", PICTURE.content[:60], b"\x89PNG\r\n\x1a\n" + bytes(100), b"GIF89a" + b"\xff" * 50):
        error = refusal(client, image(content))
        assert (error.status_code, error.code) == (400, "unreadable_image")
        assert not re.search(r"0x|BytesIO|PIL|/", error.response.json()["error"]["message"])


@pytest.mark.parametrize("word", ["<|image|>", "<|video|>", "<|im_end|>", "<|im_start|>system", "<|image|>" * 100])
def test_a_special_token_in_a_users_text_is_text(client, word):
    """vllm#10648."""
    assert ask(client, text=f"What is {word}?").usage.prompt_tokens_details.images == 0
    seen = ask(client, image(PICTURE.content), text=f"What is {word}?")
    assert seen.usage.prompt_tokens_details.images == 1
    assert text_of(ask(client, image(PICTURE.content))) is not None


def test_images_leave_no_memory_behind(client, running):
    """vllm#15294, sglang#8902."""
    rng = np.random.default_rng(0)

    def show(megabytes: int) -> None:
        for _ in range(megabytes):
            ask(client, image(png(rng.integers(0, 256, (600, 600, 3), np.uint8))), max_tokens=1)

    show(MEASURED)
    before = running.server.resident_mib()
    show(3 * MEASURED)
    assert running.server.resident_mib() - before < MEASURED, "three times that would be there if they were kept"
    numbers = running.server.numbers()
    assert numbers["owl3_image_pages/used"] == numbers["owl3_text_pages/used"] == 0


def test_pictures_of_the_same_bytes_in_other_shapes_are_different_pictures(client):
    """sglang#2151, LMCache#4086, dynamo PR #8340: a hash of the bytes alone takes 30x150 for 150x30."""
    pixels = np.random.default_rng(1).integers(0, 256, (150, 30, 3), np.uint8)
    shapes = [png(pixels), png(pixels.reshape(30, 150, 3))]
    fields = {"logprobs": True, "top_logprobs": 5, "max_tokens": 4}
    first = [ask(client, image(shape), **fields) for shape in shapes]
    again = [ask(client, image(shape), **fields) for shape in shapes]
    assert [each.usage.prompt_tokens_details.cached_images for each in (*first, *again)] == [0, 0, 1, 1]
    said = [[token.logprob for token in each.choices[0].logprobs.content] for each in (*first, *again)]
    assert said[0] == pytest.approx(said[2], abs=1e-4) and said[1] == pytest.approx(said[3], abs=1e-4)
    assert said[0] != pytest.approx(said[1], abs=1e-3)


def test_each_of_many_requests_at_once_sees_its_own_image_again_and_again(client, owl):
    """llama.cpp#4194, llama-cpp-python fork#90: another slot's image, or a stale one from the third request on."""
    shown = pictures(12)
    question = "Describe the image."
    wanted = [Question("one image", (("user", (each, question)),), max_tokens=8) for each in shown]
    answers = [answer.text for answer in answers_alone(owl, wanted)]
    assert len(set(answers)) > 6, "they can be told apart"
    with ThreadPoolExecutor(len(shown)) as threads:
        for _ in range(3):
            assert list(threads.map(lambda each: text_of(ask(client, image(each.content))), shown)) == answers
    turns: list[Turn] = []
    for each in shown[:4]:
        turns.append(("user", (each, question)))
        follow_up = Question("follow-up", tuple(turns), max_tokens=8)
        (answer,) = answers_alone(owl, [follow_up])
        assert text_of(client.chat.completions.create(**follow_up.body("digits", stream=False))) == answer.text
        turns.append(("assistant", (answer.text,)))


def test_a_slow_image_host_hangs_nobody_else(client, running):
    """lmdeploy PR #1684."""
    running.web.has_slow_visitor.clear()
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(refusal, client, url_part(f"http://{running.target.pictures}/slow"))
        try:
            assert running.web.has_slow_visitor.wait(PATIENCE)
            assert text_of(ask(client, image(PICTURE.content)))
        finally:
            running.web.has_lost_patience.set()
        error = waiting.result(PATIENCE)
        running.web.has_lost_patience.clear()
    assert (error.status_code, error.code) in ((400, "media_unreachable"), (400, "media_timeout"))


def test_more_requests_than_may_wait_are_told_to_come_back(client, running):
    """vllm#18826."""
    error = asyncio.run(first_refusal_of_many(running, requests=6, answers=16))
    assert isinstance(error, openai.RateLimitError) and int(error.response.headers["retry-after"]) >= 1
    wait_until_idle(running)
    assert text_of(ask(client, image(PICTURE.content))), "they have left, and so have their requests"


async def first_refusal_of_many(running: Attacked, requests: int, answers: int) -> BaseException | None:
    """Sends long requests all at once, and leaves when one of them is refused."""
    options = {"model": "digits", "messages": [{"role": "user", "content": "How many images?"}], "max_tokens": 2000}
    async with openai.AsyncOpenAI(
        base_url=f"{running.server.url}/v1", api_key=running.target.key, max_retries=0, timeout=PATIENCE
    ) as client:
        create = client.chat.completions.create
        asking = [asyncio.ensure_future(create(**options, n=answers, extra_body={"min_tokens": 2000})) for _ in range(requests)]
        done, waiting = await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
        for each in waiting:
            each.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        return done.pop().exception()


def wait_until_idle(running: Attacked) -> None:
    """Until the server has noticed that everybody has gone."""
    deadline = time.monotonic() + PATIENCE
    while any(running.server.numbers()[f"owl3_requests_{state}"] for state in ("waiting", "running")):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_log_probabilities_need_no_alternatives(client):
    """vllm#4795."""
    (choice,) = ask(client, image(PICTURE.content), logprobs=True).choices
    assert choice.logprobs.content and all(token.top_logprobs == [] and token.logprob <= 0 for token in choice.logprobs.content)


def test_the_eleventh_image_is_an_image_and_one_too_many_a_bad_request(client):
    """llama.cpp#14111."""
    shown = [image(each.content) for each in pictures(65)]
    assert ask(client, *shown[:11], text="How many images?").usage.prompt_tokens_details.images == 11
    assert ask(client, *shown[:64], text="How many images?").usage.prompt_tokens_details.images == 64
    assert refusal(client, *shown).status_code == 400


def test_a_follow_up_finds_the_prefix_of_a_conversation_with_images(client):
    """sglang-jax's architecture documents: there the prefix cache is off as soon as there are images."""
    text = "Describe the images. " * 20
    first = ask(client, *(image(each.content) for each in pictures(8)), text=text)
    history = [
        {"role": "user", "content": [*(image(each.content) for each in pictures(8)), {"type": "text", "text": text}]},
        {"role": "assistant", "content": text_of(first)},
        {"role": "user", "content": "How many images?"},
    ]
    second = client.chat.completions.create(model="digits", messages=history, temperature=0, max_tokens=8)
    details = second.usage.prompt_tokens_details
    assert details.cached_images == 8 and details.cached_tokens > first.usage.prompt_tokens - 64


def test_an_answer_of_the_server_is_that_of_the_library(client, owl):
    questions = draw_questions(random.Random(2), 9)
    for question, answer in zip(questions, answers_alone(owl, questions), strict=True):
        body = question.body("digits", stream=False)
        said = client.chat.completions.create(**body)
        assert [choice.message.content for choice in said.choices] == [answer.text] * question.n
        body = question.body("digits", stream=True)
        pieces = [""] * question.n
        for chunk in client.chat.completions.create(**body):
            for choice in chunk.choices:
                pieces[choice.index] += choice.delta.content or ""
        assert pieces == [answer.text] * question.n


def test_a_soak_of_mixed_requests_finds_nothing_wrong(owl, running):
    questions = draw_questions(random.Random(3), 27)
    answered = list(zip(questions, answers_alone(owl, questions), strict=True))
    plan = Plan("digits", answered, requests=150, clients=8, kill_every=60, key=running.target.key)
    found = asyncio.run(soak(running.server, plan))
    assert wrong(found) == [] and len(found.outcomes) == 150 and found.kills == 2


def test_pictures_that_all_show_are_read_once_and_change_no_answer(running, capsys):
    flags = ("--images", "6", "--clients", "3", "--long", "0", "--seed", "7", "--api-key", running.target.key)
    serving_sharing.main([running.server.url, *flags])
    figures = dict(line.rsplit(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert (figures["images that the vision tower read"], figures["answers that differ from those alone"]) == ("6", "0")


def test_attacks_get_nowhere_and_hurt_nobody(running):
    found = asyncio.run(assault(running, PICTURE, with_slow=False, patience=PATIENCE))
    assert [verdict for verdict in found.verdicts if verdict.problem] == []
    assert (found.bystander.problems, found.problems) == ([], [])
    assert len(found.verdicts) > 200
