"""`owl3 generate --jsonl` over 200 requests, 40 of them bad in every way that users have found: none costs another's answer."""

import base64
import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from tests.e2e.tools import make_checkpoint, run_here
from tests.videos import write_video

REQUESTS, BAD = 200, 40
OPTIONS = ("--max-new-tokens", 2, "--no-crop", "--batch-size", 16)


def encoded(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (12, 9), (200, 30, 30)).save(buffer, kind)
    return buffer.getvalue()


def user(content: object) -> dict:
    return {"messages": [{"role": "user", "content": content}]}


def bad_lines(place: Path) -> dict[str, str]:
    """Each line that has no answer, by a part of its error."""
    for kind in ("png", "jpeg", "gif", "webp", "tiff", "bmp", "avif"):
        (place / f"cut.{kind}").write_bytes(encoded(kind)[: 60 if kind in ("tiff", "bmp") else -8 if kind == "avif" else 30])
    write_video(place / "film.mp4", 20)
    (place / "cut.mp4").write_bytes((place / "film.mp4").read_bytes()[:900])
    (place / "text.mp4").write_text("no video")
    (place / "text.png").write_text("no image")
    (place / "empty.png").touch()
    (place / "folder").mkdir()
    Image.new("F", (2, 2)).save(place / "floats.tiff")
    two_images = {"prompt": "<|image|>?", "images": ["good.png", "good.png"]}
    long_uri = "data:image/png;base64," + "A" * 100_000
    requests: dict[str, object] = {
        **{f"cut.{kind}": {"prompt": "?", "images": [f"cut.{kind}"]} for kind in ("png", "jpeg", "gif", "webp", "tiff", "bmp")},
        "cut.avif": {"prompt": "?", "images": ["good.png", "cut.avif"]},
        "nowhere.png": {"prompt": "?", "images": ["nowhere.png"]},
        "text.png": {"prompt": "?", "images": ["text.png"]},
        "empty.png": {"prompt": "?", "images": ["empty.png"]},
        "folder": {"prompt": "?", "images": ["folder"]},
        "whose white is not known": {"prompt": "?", "images": ["floats.tiff"]},
        "its path is empty": {"prompt": "?", "images": [""]},
        "100022 characters": {"prompt": "?", "images": [long_uri]},
        "are not fetched": user([{"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}]),
        "cut.mp4": {"prompt": "?", "videos": ["cut.mp4"]},
        "text.mp4": {"prompt": "?", "videos": ["text.mp4"]},
        "nowhere.mp4": {"prompt": "?", "videos": ["nowhere.mp4"]},
        "folder has no images": {"prompt": "?", "videos": ["folder"]},
        "cannot read video 0: its path is empty": {"prompt": "?", "videos": [""]},
        "1 <|image|> placeholders, but 2 images": two_images,
        "1 <|image|> placeholders, but 0 images": user("<|image|>?"),
        "1 <|video|> placeholders, but 0 videos": user("<|video|>?"),
        "message 0 has role 'bot'": {"messages": [{"role": "bot", "content": "?"}]},
        "is the system's": {"messages": [{"role": "system", "content": "Be terse."}]},
        "message 0 has no 'content'": {"messages": [{"role": "user"}]},
        "message 0 has content of type int": user(3),
        "part 0 of message 0 has type 'audio'": user([{"type": "audio"}]),
        "there are no messages": {"messages": []},
        "(system) contains <|image|>": {
            "messages": [{"role": "system", "content": "<|image|>"}, {"role": "user", "content": "?"}]
        },
        "tokens, the model has": {"prompt": "word " * 9000},
        "half of a surrogate pair": {"prompt": "\ud800"},
        "did you mean 'top_k'": {"prompt": "?", "sampling": {"topk": 1}},
        "max_new_tokens must be": {"prompt": "?", "sampling": {"max_new_tokens": 0}},
        "unknown key 'image'": {"prompt": "?", "image": "good.png"},
        "images must be a list": {"prompt": "?", "images": "good.png"},
        "prompt must be a string": {"prompt": ["?"]},
        "must be a JSON object": [1],
        'either "prompt" or "messages"': {"prompt": "?", "messages": []},
    }
    return {error: json.dumps(request) for error, request in requests.items()} | {"invalid JSON": '{"prompt": "?'}


def good_line(number: int) -> str:
    """Text alone, images of all kinds, a video, parts, an answer that is begun."""
    uri = "data:image/png;base64," + base64.b64encode(encoded("png")).decode()
    kinds = [
        {"prompt": "What?", "images": None},
        {"prompt": "What?", "images": ["good.png"]},
        {"prompt": "What?", "images": [uri]},
        user([{"type": "image_url", "image_url": {"url": "good.png"}}, {"type": "text", "text": "What?"}]),
        {"prompt": "What?", "videos": ["good"]},
        {"messages": [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "It"}]},
    ]
    return json.dumps(kinds[number % len(kinds)])


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a checkpoint and a file of requests, every fifth of which is bad."""
    place = tmp_path_factory.mktemp("place")
    make_checkpoint(place / "checkpoint")
    (place / "good.png").write_bytes(encoded("png"))
    (place / "good").mkdir()
    (place / "good" / "1.jpg").write_bytes(encoded("jpeg"))
    bad = iter(bad_lines(place).values())
    lines = [next(bad) if number % 5 == 0 else good_line(number) for number in range(REQUESTS)]
    (place / "requests.jsonl").write_text("\n".join(lines) + "\n")
    return place


def command(place: Path, out: Path) -> list[str]:
    given = ["--checkpoint", place / "checkpoint", "--jsonl", place / "requests.jsonl", "--out", out, *OPTIONS]
    return ["generate", *map(str, given)]


def records(path: Path) -> list[dict]:
    """All results that are whole."""
    return [json.loads(line) for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


@pytest.fixture(scope="module")
def results(place) -> dict[int, dict]:
    assert run_here(*command(place, place / "out.jsonl")) == (
        f"error: {BAD} of {REQUESTS} requests failed, see {place / 'out.jsonl'}; delete their lines there to try them again"
    )
    found = records(place / "out.jsonl")
    assert len(found) == REQUESTS
    return {record["id"]: record for record in found}


def test_all_others_are_answered(results):
    good = [number for number in range(1, REQUESTS + 1) if (number - 1) % 5]
    assert len(good) == REQUESTS - BAD
    assert all(results[number]["answers"][0]["tokens"] >= 1 for number in good)


def test_each_bad_one_is_named_with_its_reason(results, tmp_path):
    bad = list(bad_lines(tmp_path))
    assert len(bad) == BAD
    for number, error in zip(range(1, REQUESTS, 5), bad, strict=True):
        assert error in results[number]["error"], number
        assert len(results[number]["error"]) < 500


def test_after_a_kill_the_same_command_loses_and_repeats_nothing(place, results, tmp_path):
    out = tmp_path / "out.jsonl"
    process = subprocess.Popen([sys.executable, "-c", "import owl3_jax.cli; owl3_jax.cli.main()", *command(place, out)])
    deadline = time.monotonic() + 240
    while not out.exists() or len(records(out)) < REQUESTS // 4:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert REQUESTS // 4 <= len(records(out)) < REQUESTS
    assert str(run_here(*command(place, out))).startswith(f"error: {BAD} of {REQUESTS} requests failed")
    found = records(out)
    assert sorted(record["id"] for record in found) == list(range(1, REQUESTS + 1))
    for record in found:  # temporary folders differ, so that only answers can be compared
        assert ("error" in record) == ("error" in results[record["id"]])
        assert record.get("answers") == results[record["id"]].get("answers")
