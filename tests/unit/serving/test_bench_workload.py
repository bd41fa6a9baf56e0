"""What is shown and asked: pictures, questions and conversations, drawn by a seed."""

import asyncio
import io
import itertools
import json

import numpy as np
import pytest
from PIL import Image

from owl3_jax.serving.bench.bodies import Preparer, RequestOptions, Stock
from owl3_jax.serving.bench.pictures import FolderPictures, Photographs, Picture
from owl3_jax.serving.bench.prompts import Prompts, builtin_prompts, read_prompts
from owl3_jax.serving.bench.workload import Conversation, ImageCounts, Workload
from tests.unit.serving.bench_server import pictures_of

OPTIONS = RequestOptions("owl", max_tokens=5, temperature=0.0)


@pytest.fixture(scope="module")
def photographs() -> Photographs:
    return Photographs(seed=3, size=(40, 30))


def decoded(picture: Picture) -> Image.Image:
    image = Image.open(io.BytesIO(picture.content))
    image.load()
    return image


def workload(counts: str = "1:4", **settings) -> Workload:
    return Workload(ImageCounts.parse(counts), builtin_prompts(), **settings)


def first(count: int, drawn: Workload) -> list[Conversation]:
    return list(itertools.islice(drawn.conversations(), count))


def test_pictures_are_jpegs_of_the_size_and_all_differ(photographs):
    pictures = [photographs.get(number, variant) for number in range(150) for variant in range(2)]
    images = [decoded(picture) for picture in pictures]
    assert {(image.format, image.size, image.mode) for image in images} == {("JPEG", (40, 30), "RGB")}
    assert len({image.tobytes() for image in images}) == 300
    assert all(np.asarray(image).std() > 2 for image in images), "a picture shows nothing"


def test_pictures_follow_the_seed(photographs):
    assert photographs.get(7, 1) == Photographs(seed=3, size=(40, 30)).get(7, 1)
    assert photographs.get(7, 1) != Photographs(seed=4, size=(40, 30)).get(7, 1)


@pytest.fixture
def folder(tmp_path, photographs):
    for number, suffix in enumerate(("jpg", "png", "webp")):
        decoded(photographs.get(number, 0)).resize((30 + number, 20)).save(tmp_path / f"{number}.{suffix}")
    (tmp_path / "notes.txt").write_text("no picture")
    return tmp_path


def test_a_folders_pictures_are_shown_as_they_are_and_then_trimmed(folder):
    pictures = FolderPictures(folder, seed=0)
    files = {file.read_bytes() for file in folder.iterdir() if file.suffix != ".txt"}
    shown = [pictures.get(number, 0) for number in range(3)]
    assert {picture.content for picture in shown} == files
    assert {picture.media_type for picture in shown} == {"image/jpeg", "image/png", "image/webp"}
    others = [pictures.get(number, variant) for number, variant in [(3, 0), (4, 0), (0, 1), (1, 1), (0, 2)]]
    sizes = [decoded(shown[number]).size for number in (0, 1, 0, 1, 0)]
    assert [decoded(picture).size for picture in others] == sizes
    assert len({decoded(picture).tobytes() for picture in [*shown, *others]}) == 8


def test_a_folder_without_pictures_is_refused(tmp_path):
    with pytest.raises(ValueError, match="has no pictures"):
        FolderPictures(tmp_path, seed=0)


@pytest.mark.parametrize(
    ("text", "probabilities"),
    [
        ("4", {4: 1.0}),
        ("0", {0: 1.0}),
        ("1:4", {1: 0.25, 2: 0.25, 3: 0.25, 4: 0.25}),
        ("1,16", {1: 0.5, 16: 0.5}),
        ("1=0.75,128=0.25", {1: 0.75, 128: 0.25}),
        ("1=3, 2, 1", {1: 0.8, 2: 0.2}),
    ],
)
def test_numbers_of_images_are_read(text, probabilities):
    assert ImageCounts.parse(text).probabilities == probabilities


@pytest.mark.parametrize("text", ["", "x", "4:1", "-1", "1:", "1,", "1=0", "1=-1", "1=nan", "999999999", "1:999999999", "1.5"])
def test_what_is_no_number_of_images_is_refused(text):
    with pytest.raises(ValueError, match="is no number of images: give N"):
        ImageCounts.parse(text)


def test_conversations_follow_the_seed_and_share_no_picture():
    conversations = first(40, workload(seed=5))
    assert conversations == first(40, workload(seed=5)) != first(40, workload(seed=6))
    shown = [number for conversation in conversations for number in conversation.pictures]
    assert len(shown) == len(set(shown))
    assert {len(conversation.pictures) for conversation in conversations} == {1, 2, 3, 4}


def test_a_share_of_conversations_shows_the_same_pictures_with_other_questions():
    conversations = first(60, workload("4", shared=0.5))
    shared = [conversation for conversation in conversations if conversation.is_shared]
    own = [number for conversation in conversations if not conversation.is_shared for number in conversation.pictures]
    assert 15 < len(shared) < 45
    assert {conversation.pictures for conversation in shared} == {(0, 1, 2, 3)} and not {0, 1, 2, 3} & set(own)
    assert len({conversation.questions for conversation in shared}) == len(shared)


def test_questions_go_on_for_as_many_turns_as_are_wanted():
    prompts = Prompts([["What?"], ["Who?", "Why?", "When?"]])
    assert prompts.script(3, 2) == ("Who?", "Why?")
    assert prompts.script(0, 1) == ("What?",)
    assert len(set(prompts.script(0, 4))) == 4


def test_prompts_are_read_from_a_file(tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text('\ufeff{"prompt": "Wäs?"}\n\n{"id": 4, "prompt": ["One?", "Two?"]}\n', encoding="utf-8")
    assert read_prompts(file).scripts == [["Wäs?"], ["One?", "Two?"]]


@pytest.mark.parametrize(
    "line", ["nonsense", "[]", "{}", '{"prompt": ""}', '{"prompt": []}', '{"prompt": ["a", 1]}', "[" * 50_000]
)
def test_a_line_that_is_no_prompt_is_named(tmp_path, line):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "What?"}\n' + line)
    with pytest.raises(ValueError, match=r"prompts.jsonl:2"):
        read_prompts(file)


@pytest.mark.parametrize(("content", "message"), [(b"\n \n", "has no prompts"), (b"\xff", "not in UTF-8")])
def test_a_file_without_prompts_is_refused(tmp_path, content, message):
    file = tmp_path / "prompts.jsonl"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_prompts(file)


class CountingPictures:
    """Numbers in place of pictures."""

    typical_bytes = 1000

    def __init__(self) -> None:
        self.made: list[tuple[int, int]] = []

    def get(self, number: int, variant: int) -> Picture:
        self.made.append((number, variant))
        return Picture(f"{number}/{variant}".encode(), "image/jpeg")


def test_a_request_has_the_fields_of_the_api():
    options = RequestOptions("owl", 5, 0.5, {"top_p": 0.9})
    prepared = Preparer(CountingPictures(), 2, options).prepare(Conversation(0, (8, 9), ("What?",)))
    body = json.loads(prepared.body)
    assert pictures_of(body) == ["data:image/jpeg;base64,OC8y", "data:image/jpeg;base64,OS8y"]  # 8/2 and 9/2
    assert body["messages"][0]["content"][2] == {"type": "text", "text": "What?"}
    del body["messages"]
    assert body == {
        "model": "owl",
        "max_tokens": 5,
        "temperature": 0.5,
        "top_p": 0.9,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert prepared.first_message is None


def test_the_question_may_come_first():
    options = RequestOptions("owl", 5, 0.0, question_first=True)
    body = json.loads(Preparer(CountingPictures(), 0, options).prepare(Conversation(0, (1, 2), ("What?",))).body)
    assert [part["type"] for part in body["messages"][0]["content"]] == ["text", "image_url", "image_url"]


def test_shared_pictures_are_made_once():
    pictures = CountingPictures()
    preparer = Preparer(pictures, 0, OPTIONS)
    bodies = [preparer.prepare(Conversation(number, (0, 1), (f"{number}?",), is_shared=True)).body for number in range(3)]
    assert pictures.made == [(0, 0), (1, 0)] and len(set(bodies)) == 3


def stock_of(count: int | None, pictures: CountingPictures, **limits: int) -> Stock:
    return Stock(itertools.islice(workload("2").conversations(), count), Preparer(pictures, 0, OPTIONS), **limits)


def test_requests_are_made_ahead_in_order_up_to_the_limit():
    async def take_all(stock: Stock) -> list[int]:
        numbers = []
        while prepared := await stock.take():
            numbers.append(prepared.conversation.number)
        return numbers

    pictures = CountingPictures()
    with stock_of(9, pictures, most=4) as stock:
        stock.fill()
        assert len(pictures.made) == 4 * 2
        assert asyncio.run(take_all(stock)) == list(range(9))


def test_bytes_limit_what_is_made_ahead_even_of_endlessly_many():
    pictures = CountingPictures()
    with stock_of(None, pictures, limit=20_000) as stock:  # one is about 4096 + 2 x 1333 bytes
        stock.fill()
        assert len(pictures.made) == 3 * 2
