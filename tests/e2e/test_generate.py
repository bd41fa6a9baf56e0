"""`owl3 generate`: one prompt, and files of them that are stopped and gone on with."""

import json
import re
from pathlib import Path

import pytest

import owl3_jax
from owl3_jax.inference import programs
from owl3_jax.inference.engine import Engine
from owl3_jax.processing.video_sampling import VideoSampling
from tests.e2e.tools import make_checkpoint, run, run_here, save_photos
from tests.unit.inference.tiny_engine import memory_running_out
from tests.videos import write_video

QUESTION = "Which digit is red?"
OPTIONS = ("--max-new-tokens", 5, "--no-crop", "--repetition-penalty", 1.5)
SAME = {"max_new_tokens": 5, "crop": False, "repetition_penalty": 1.5}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a checkpoint, two photographs and a video."""
    place = tmp_path_factory.mktemp("place")
    make_checkpoint(place / "checkpoint")
    save_photos(place)
    write_video(place / "film.mp4", 50)  # five seconds
    return place


@pytest.fixture(scope="module")
def owl(place) -> owl3_jax.Owl3Checkpoint:
    return owl3_jax.from_pretrained(place / "checkpoint")


@pytest.fixture
def generate(place):
    """Runs the subcommand in this process."""
    return lambda *argv: run_here("generate", "--checkpoint", place / "checkpoint", *OPTIONS, *argv)


def write_requests(path: Path, *requests: dict | str) -> Path:
    path.write_text("".join((each if isinstance(each, str) else json.dumps(each)) + "\n" for each in requests))
    return path


def read(path: Path) -> dict:
    return {record["id"]: record for record in map(json.loads, path.read_text().splitlines())}


def texts(path: Path) -> dict[int | str, list[str]]:
    return {name: [answer["text"] for answer in record["answers"]] for name, record in read(path).items()}


def test_a_prompt_about_two_images_is_answered_on_stdout(place, owl):
    images = [place / "flower with blank.png", place / "china.jpg"]
    flags = [word for image in images for word in ("--image", image)]
    many = ("--max-new-tokens", 40, *OPTIONS[2:], "--temperature", 1)  # tokens, so that images make a difference
    done = run("generate", "--checkpoint", place / "checkpoint", *flags, "--prompt", QUESTION, *many)
    assert done.returncode == 0, done.stderr
    options = SAME | {"max_new_tokens": 40, "temperature": 1.0}
    answers = [owl.generate(QUESTION, order, **options) for order in (images, images[::-1])]
    assert done.stdout.strip() == answers[0] != answers[1]


def test_images_and_videos_stand_in_the_order_of_their_flags(place, owl, generate, capsys):
    image, video = place / "china.jpg", place / "film.mp4"
    films_first, images_first = ("--video", video, f"--image={image}"), ("--image", image, "--video", video)
    answers = []
    for flags, prompt in ((films_first, QUESTION), (images_first, QUESTION), (films_first, f"<|image|><|video|>{QUESTION}")):
        assert generate(*flags, "--prompt", prompt) == 0
        answers.append(capsys.readouterr().out.strip())
    placed = ("<|video|>\n<|image|>\n", "<|image|>\n<|video|>\n", "<|image|><|video|>")
    assert answers == [owl.generate(before + QUESTION, [image], [video], **SAME) for before in placed]
    assert len({*answers}) == 3


def test_memory_that_runs_out_is_one_line_that_says_what_to_do(place, generate, capsys):
    with memory_running_out(programs.decode, at_call=3):
        failed = str(generate("--prompt", QUESTION, "--image", place / "china.jpg"))
    assert re.fullmatch(r"error: memory ran out \(RESOURCE_EXHAUSTED: .+\); use fewer images or rows, .+", failed)
    assert re.fullmatch(r"\S+ \S+ \S+\n", capsys.readouterr().out), "what was answered until then"


def test_a_request_that_needs_too_much_memory_harms_no_other(place, generate):
    requests = write_requests(place / "memory.jsonl", *({"prompt": QUESTION} for _ in range(3)))
    out = place / "memory-results.jsonl"
    # All three together, then the first one alone; the other two share a batch again.
    with memory_running_out(programs.prefill), memory_running_out(programs.decode):
        assert re.search("error: 1 of 3", str(generate("--jsonl", requests, "--out", out)))
    results = read(out)
    assert results.pop(1)["error"].startswith("memory ran out (") and len(results) == 2
    assert all("answers" in result for result in results.values())


def test_a_file_of_requests_goes_on_where_it_was_cut_off(place, owl, generate):
    photos = ["china.jpg", "flower with blank.png"]
    requests = write_requests(
        place / "requests.jsonl",
        {"prompt": QUESTION, "images": photos[:1]},
        "",
        {"id": "both", "messages": [{"role": "user", "content": "How <|image|> many <|image|>?"}], "images": photos},
        {"id": "lost", "prompt": QUESTION, "images": ["missing.jpg"]},
        {"prompt": "How many?", "sampling": {"max_new_tokens": 3, "logprobs": True}},
        "not JSON",
        {"id": "film", "prompt": QUESTION, "videos": ["film.mp4"]},
    )
    out = place / "results.jsonl"
    argv = ("--jsonl", requests, "--out", out, "--max-frames", 2, "--batch-size", 2)
    first = run("generate", "--checkpoint", place / "checkpoint", *OPTIONS, *argv)
    assert first.returncode == 1 and re.search("error: 2 of 6 requests failed, see .*results.jsonl", first.stderr)
    results = read(out)
    assert "missing.jpg" in results.pop("lost")["error"] and "line 6: invalid JSON" in results.pop(6)["error"]
    shown_two_frames = owl.with_processor(video_sampling=VideoSampling(max_frames=2))
    ask = lambda *asked, **options: [owl.generate(*asked, **(SAME | options))]
    paths = [place / name for name in photos]
    assert {name: [answer["text"] for answer in record["answers"]] for name, record in results.items()} == {
        1: ask(QUESTION, paths[:1]),
        "both": ask("How <|image|> many <|image|>?", paths),
        5: ask("How many?", max_new_tokens=3),
        "film": [shown_two_frames.generate(QUESTION, videos=[place / "film.mp4"], **SAME)],
    }
    assert len(results[5]["answers"][0]["logprobs"]) == 3 == results[5]["answers"][0]["tokens"]

    whole = out.read_bytes()
    out.write_bytes(whole[:-20])
    assert re.search("error: 2 of 6", str(generate(*argv)))
    assert sorted(out.read_bytes().splitlines()) == sorted(whole.splitlines())
    written = out.stat().st_mtime_ns
    assert re.search("error: 2 of 6", str(generate(*argv)))
    assert out.stat().st_mtime_ns == written


def test_an_interrupted_file_keeps_its_results_and_says_how_to_go_on(place, generate, monkeypatch, capsys):
    prompts = [QUESTION, "How many?", "Describe the image"]
    requests = write_requests(place / "three.jsonl", *({"prompt": prompt} for prompt in prompts))
    argv = ("--jsonl", requests, "--batch-size", 1, "--out")
    assert generate(*argv, place / "uninterrupted.jsonl") == 0
    calls, answer = [], Engine.generate

    def interrupted(self, *arguments, **options):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return answer(self, *arguments, **options)

    monkeypatch.setattr(Engine, "generate", interrupted)
    assert generate(*argv, place / "interrupted.jsonl") == 130
    assert "stopped with 2 of 3 results" in capsys.readouterr().err
    assert len(texts(place / "interrupted.jsonl")) == 2
    assert generate(*argv, place / "interrupted.jsonl") == 0
    assert len(calls) == 4 and texts(place / "interrupted.jsonl") == texts(place / "uninterrupted.jsonl")


def test_fail_fast_notes_no_error_and_keeps_what_was_answered(place, generate, capsys):
    requests = write_requests(place / "bad.jsonl", {"prompt": QUESTION}, {"prompt": QUESTION, "images": ["missing.jpg"]})
    argv = ("--jsonl", requests, "--out", place / "bad-results.jsonl", "--fail-fast")
    assert re.match(r"error: request 2: cannot read image 0 .*missing\.jpg", str(generate(*argv)))
    assert list(texts(place / "bad-results.jsonl")) == [1]


def test_several_answers_are_numbered_and_on_a_mesh_the_same(place, generate, capsys):
    argv = ("--prompt", QUESTION, "--image", place / "china.jpg", "--n", 2, "--temperature", 1, "--logprobs")
    assert generate(*argv) == 0
    printed = capsys.readouterr().out
    assert re.findall(r"^\[(\d)\] .+\nlog-probability -\d+\.\d{3} of \d tokens$", printed, re.MULTILINE) == ["1", "2"]
    assert generate(*argv, "--mesh.tensor", 2) == 0
    assert re.findall(r"\[\d\] .*", capsys.readouterr().out) == re.findall(r"\[\d\] .*", printed)


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        ((), "give either --prompt TEXT"),
        (("--prompt", "a", "--jsonl", "b", "--out", "c"), "give either --prompt TEXT"),
        (("--jsonl", "b"), "--jsonl FILE and --out FILE go together"),
        (("--jsonl", "b", "--out", "b"), "are the same file"),
        (("--jsonl", "b", "--out", "c", "--image", "d"), "--image and --video go with --prompt"),
        (("--jsonl", "b", "--out", "c", "--batch-size", 0), "--batch-size must be at least 1, got 0"),
        (("--prompt", "a", "--max-frames", 0), "--max-frames must be at least 1, got 0"),
        (("--prompt", "a", "--n", 3), "n 3 greedy answers would be the same"),
        (("--prompt", "a", "--sampling", "best"), "known settings: greedy, evaluation, chat, beam"),
        (("--prompt", "a", "--generation-config"), "generation_config.json"),
        (("--prompt", "a", "--crop"), "--no-crop"),
        (("--prompt", "a", "--imag", "b"), "--imag"),
    ],
)
def test_a_wrong_command_line_exits_with_2(generate, capsys, argv, complaint):
    assert generate(*argv) == 2
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (("--prompt", "a", "--image", "missing.jpg"), r"cannot read image 0 \(missing\.jpg\)"),
        (("--prompt", "a <|image|>"), "1 <.image.> placeholders, but 0 images"),
        (("--prompt", "a", "--mesh.fsdp", "16"), "needs 16 devices, there are 8"),
        (("--jsonl", "missing.jsonl", "--out", "out.jsonl"), r"missing\.jsonl"),
    ],
)
def test_a_failure_is_one_line_and_exits_with_1(generate, tmp_path, monkeypatch, argv, complaint):
    monkeypatch.chdir(tmp_path)
    assert re.match(rf"error: .*{complaint}", str(generate(*argv)))
