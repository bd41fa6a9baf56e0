"""`owl3 data check` finds all of 40 planted faults in 2,000 records, and nothing else; and goes on after a kill."""

import base64
import copy
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from owl3_jax.cli import main as owl3
from owl3_jax.cli.data_check import main
from owl3_jax.data.check.record import Checked, Checker
from tests.videos import write_video

RECORDS = 2000
CONFIG = """
from owl3_jax.config import Config, DataConfig

def get_config():
    return Config(data=DataConfig(rows=4, tokens_per_row=128, images_per_row=6, too_long="skip"))
"""
Tree = dict[str, object]


def record(number: int) -> Tree:
    """One of several layouts: one image, two, a video, none, several turns."""
    layout = number % 5
    asked = ["<image>\nWhat is it?", "<image><image>Which one is red?", "<video>\nWhat happens?", "How many?", "<image>Now?"]
    messages = [
        {"role": "user", "content": f"{asked[layout]} Number {number}."},
        {"role": "assistant", "content": f"It is {number}."},
    ]
    if layout == 4:
        messages += [{"role": "user", "content": "And then?"}, {"role": "assistant", "content": "The same."}]
    image = f"{number % 50}.jpg"
    images = {0: [image], 1: [image, "0.jpg"], 4: [image]}.get(layout, [])
    return {"messages": messages, "images": images, "videos": ["film.mp4"] if layout == 2 else []}


def with_images(tree: Tree, *images: str) -> Tree:
    tags = "<image>" * len(images)
    messages = [{"role": "user", "content": f"{tags}What?"}, {"role": "assistant", "content": f"{images}"}]
    return {"messages": messages, "images": list(images)}


def with_video(tree: Tree, video: object) -> Tree:
    messages = [{"role": "user", "content": "<video>What?"}, {"role": "assistant", "content": f"{video}"}]
    return {"messages": messages, "videos": [video]}


def with_contents(tree: Tree, *contents: object) -> Tree:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]}


def with_roles(tree: Tree, *roles: str) -> Tree:
    return {"messages": [{"role": role, "content": "Hello."} for role in roles]}


LONG = "word " * 300
DATA_URI = "data:image/png;base64," + base64.b64encode(b"\x89PNG no image").decode()
PLANTED: dict[str, list[Callable[[Tree], object]]] = {
    "malformed": [
        lambda tree: json.dumps(tree)[:-5],
        lambda tree: [tree],
        lambda tree: {"text": "no conversation"},
        lambda tree: {**tree, "messages": "Hello"},
    ],
    "roles": [
        lambda tree: with_roles(tree, "assistant", "user"),
        lambda tree: with_roles(tree, "user", "user", "assistant"),
        lambda tree: with_roles(tree, "user", "assistant", "system", "assistant"),
        lambda tree: with_roles(tree, "user", "bot"),
    ],
    "no-answer": [
        lambda tree: with_contents(tree, "a", ""),
        lambda tree: with_contents(tree, "a", " \n"),
        lambda tree: with_contents(tree, "a", "b", "c"),
        lambda tree: with_contents(tree, "a", None),
    ],
    "placeholders": [
        lambda tree: {**with_images(tree, "0.jpg"), "images": []},
        lambda tree: {**with_images(tree, "0.jpg"), "images": ["0.jpg", "1.jpg"]},
        lambda tree: {**with_contents(tree, "a", "an <image>"), "images": ["0.jpg"]},
        lambda tree: {**with_video(tree, "film.mp4"), "videos": []},
    ],
    "missing-file": [
        lambda tree: with_images(tree, "nowhere.jpg"),
        lambda tree: with_images(tree, "1.jpg", "no/where.jpg"),
        lambda tree: with_video(tree, "nowhere.mp4"),
        lambda tree: with_video(tree, ["1.jpg", "nowhere.jpg"]),
    ],
    "unreadable-image": [
        lambda tree: with_images(tree, "cut.jpg"),
        lambda tree: with_images(tree, "2.jpg", "text.jpg"),
        lambda tree: with_images(tree, "empty.jpg"),
        lambda tree: with_images(tree, DATA_URI),
    ],
    "unreadable-video": [
        lambda tree: with_video(tree, "cut.mp4"),
        lambda tree: with_video(tree, "text.mp4"),
        lambda tree: with_video(tree, ["3.jpg", "cut.jpg"]),
        lambda tree: with_video(tree, []),
    ],
    "too-long": [
        lambda tree: with_contents(tree, LONG, "yes"),
        lambda tree: with_contents(tree, "a", LONG),
        lambda tree: with_contents(tree, *["turn", "by", "turn", "it", "grows", "and"] * 20),
        lambda tree: with_contents(tree, "word " * 126, "yes"),
    ],
    "too-many-images": [
        lambda tree: with_images(tree, *[f"{i}.jpg" for i in range(7)]),
        lambda tree: with_images(tree, *["5.jpg"] * 12),
        lambda tree: with_images(tree, *["6.jpg"] * 9),
        lambda tree: with_images(tree, *["7.jpg"] * 8),
    ],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for index in range(50):
        Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8)).save(place / f"{index}.jpg")
    write_video(place / "film.mp4", 20)
    (place / "cut.jpg").write_bytes((place / "0.jpg").read_bytes()[:500])
    (place / "cut.mp4").write_bytes((place / "film.mp4").read_bytes()[:900])
    (place / "text.jpg").write_text("no image")
    (place / "text.mp4").write_text("no video")
    (place / "empty.jpg").touch()
    (place / "config.py").write_text(CONFIG)
    return place


@pytest.fixture(scope="module")
def planted(folder) -> dict[int, str]:
    """Writes the records, faults among them; returns the kind of each fault by its record."""
    records: list[object] = [record(number) for number in range(RECORDS)]
    places = np.random.default_rng(1).choice(np.arange(100, RECORDS), 40, replace=False).tolist()
    kinds: dict[int, str] = {}
    for kind, changes in PLANTED.items():
        for change in changes:
            place = places.pop()
            records[place], kinds[place] = change(copy.deepcopy(records[place])), kind
    for place in sorted(places):
        records[place], kinds[place] = record(place % 100), "duplicate"
    lines = [each if isinstance(each, str) else json.dumps(each) for each in records]
    (folder / "data.jsonl").write_text("\n".join(lines) + "\n")
    assert len(kinds) == 40
    return kinds


def run_check(folder: Path, *arguments: object) -> int:
    try:
        main([str(folder / "data.jsonl"), "--config", str(folder / "config.py"), *map(str, arguments)])
    except SystemExit as error:
        return int(error.code or 0)
    return 0


def test_every_planted_fault_is_found_and_nothing_else(folder, planted, tmp_path, capsys):
    assert run_check(folder, "--json", tmp_path / "out.json", "--html", tmp_path / "out.html") == 1
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["records"] == RECORDS
    assert {problem["source"] for problem in report["problems"]} == {str(folder / "data.jsonl")}
    assert {(problem["record"], problem["kind"]) for problem in report["problems"]} == set(planted.items())
    assert report["skipped"] == 36  # all but the duplicates
    assert report["forecast"]["samples"] == RECORDS - 36
    page = (tmp_path / "out.html").read_text()
    assert "skip 36 of 2,000 records" in page and page.count('<div class="card">') >= 40
    assert "http" not in page.replace("http-equiv", "")  # it needs no other file
    assert "training would skip 36" in capsys.readouterr().out


def test_one_process_finds_the_same_as_several(folder, planted, tmp_path):
    run_check(folder, "--json", tmp_path / "several.json", "--workers", 3)
    run_check(folder, "--json", tmp_path / "one.json", "--workers", 1)
    assert (tmp_path / "one.json").read_text() == (tmp_path / "several.json").read_text()


def test_a_killed_check_goes_on_and_reports_the_same(folder, planted, tmp_path):
    out = tmp_path / "out.json"
    journal = out.with_name(".out.json.unfinished")
    code = "import sys; from owl3_jax.cli.data_check import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", code, str(folder / "data.jsonl"), "--config", str(folder / "config.py")]
    command += ["--json", str(out), "--workers", "1"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (journal.exists() and journal.read_text().count("\n") > 5) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = journal.read_text()
    assert kept.count("\n") > 5 and not out.exists()
    journal.write_text(kept + '[[0, 64, 96], [[[["malfor')  # as a kill can leave it
    resumed = subprocess.run(command, capture_output=True, text=True)
    assert resumed.returncode == 1 and not journal.exists()
    run_check(folder, "--json", tmp_path / "whole.json")
    assert out.read_text() == (tmp_path / "whole.json").read_text()


def test_a_record_can_have_several_problems(folder, tmp_path):
    trees = [
        {**with_images({}, *[f"{i}.jpg" for i in range(7)], "nowhere.jpg", "cut.jpg"), "id": 0},
        {
            "messages": [{"role": "user", "content": "<image>" + LONG}, {"role": "assistant", "content": "x"}],
            "images": ["cut.jpg"],
        },
        {
            "messages": [{"role": "user", "content": "<image>"}, {"role": "assistant", "content": ""}],
            "images": ["a.jpg", "b.jpg"],
        },
    ]
    (tmp_path / "data.json").write_text(json.dumps(trees))
    for name in ("cut.jpg", *(f"{i}.jpg" for i in range(7))):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(SystemExit):
        main([str(tmp_path / "data.json"), "--config", str(folder / "config.py"), "--json", str(tmp_path / "out.json")])
    found: dict[int, list[str]] = {0: [], 1: [], 2: []}
    for problem in json.loads((tmp_path / "out.json").read_text())["problems"]:
        found[problem["record"]].append(problem["kind"])
    assert found == {
        0: ["missing-file", "unreadable-image", "too-many-images"],
        1: ["unreadable-image", "too-long"],
        2: ["no-answer", "placeholders", "missing-file", "missing-file"],
    }


def test_images_that_are_held_out_are_named(folder, tmp_path):
    (tmp_path / "train.json").write_text(json.dumps([with_images({}, str(folder / f"{i}.jpg")) for i in range(5)]))
    (tmp_path / "test.json").write_text(json.dumps([with_contents({}, "a", "b"), with_images({}, str(folder / "3.jpg"))]))
    train, held_out = str(tmp_path / "train.json"), str(tmp_path / "test.json")
    main([train, "--held_out", held_out, "--json", str(tmp_path / "out.json")])  # exits with 0: nothing is skipped
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["records"] == 5
    (problem,) = report["problems"]
    assert problem == {
        "source": train,
        "record": 3,
        "kind": "duplicate",
        "detail": f"image 0 is held out too, in record 1 of {held_out}",
    }


def test_truncated_records_are_not_skipped(tmp_path):
    turns = ["Hello there"] * 300
    (tmp_path / "data.json").write_text(json.dumps([with_contents({}, *turns), with_contents({}, "a", "b")]))
    main([str(tmp_path / "data.json"), "--json", str(tmp_path / "out.json"), "--config.data.too_long", "truncate"])
    report = json.loads((tmp_path / "out.json").read_text())
    assert [problem["kind"] for problem in report["problems"]] == ["too-long"]
    assert (report["skipped"], report["sources"][0]["truncated"], report["forecast"]["samples"]) == (0, 1, 2)
    with pytest.raises(SystemExit) as raised:
        main([str(tmp_path / "data.json"), "--json", str(tmp_path / "out.json"), "--config.data.too_long", "skip"])
    assert raised.value.code == 1


def test_a_source_that_is_not_there_is_a_sentence(tmp_path):
    with pytest.raises(SystemExit, match=r"error: data\.sources: there is no file or folder"):
        main([str(tmp_path / "none.jsonl"), "--json", str(tmp_path / "out.json")])
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize(
    "source, flags, message",
    [
        ("data.jsonl", ["--json", "data.jsonl"], r"--json .*data\.jsonl is in the source .*data\.jsonl"),
        ("*.jsonl", ["--html", "data.jsonl"], r"--html .*data\.jsonl is in the source"),
        ("", ["--json", "data.jsonl"], r"--json .*data\.jsonl is in the source"),
        ("data.jsonl", ["--json", "data.jsonl/out"], r"--json .*out: .*data\.jsonl is not a folder"),
        ("data.jsonl", ["--json", "folder"], r"--json .*folder is a folder"),
        ("data.jsonl", ["--json", "out", "--html", "folder/../out"], "are the same file"),
    ],
)
def test_a_report_does_not_replace_what_is_read(source, flags, message, tmp_path):
    text = json.dumps({"messages": [{"role": "user", "content": "digit"}, {"role": "assistant", "content": "7"}]})
    (tmp_path / "data.jsonl").write_text(text)
    (tmp_path / "folder").mkdir()
    paths = [flag if flag.startswith("--") else str(tmp_path / flag) for flag in flags]
    with pytest.raises(SystemExit, match=message):
        main([str(tmp_path / source), *paths])
    assert (tmp_path / "data.jsonl").read_text() == text


def test_names_that_are_no_text_are_reported(tmp_path, capsys):
    """A report can be written and read though a path has half of a surrogate pair."""
    messages = [{"role": "user", "content": "<image>digit"}, {"role": "assistant", "content": "7"}]
    (tmp_path / "data.jsonl").write_text(json.dumps({"messages": messages, "images": ["\ud800.png"]}))
    flags = ["--json", str(tmp_path / "out.json"), "--html", str(tmp_path / "out.html")]
    with pytest.raises(SystemExit) as raised:
        owl3(["data", "check", str(tmp_path / "data.jsonl"), *flags])
    assert raised.value.code == 1 and "\\ud800.png" in capsys.readouterr().out
    (problem,) = json.loads((tmp_path / "out.json").read_text())["problems"]
    assert "\ud800.png" in problem["detail"] and "\\ud800.png" in (tmp_path / "out.html").read_text()


def test_a_named_pipe_is_no_image(tmp_path):
    """Reading it would never end."""
    os.mkfifo(tmp_path / "a.jpg")
    messages = [{"role": "user", "content": "<image>digit"}, {"role": "assistant", "content": "7"}]
    (tmp_path / "data.jsonl").write_text(json.dumps({"messages": messages, "images": ["a.jpg"]}))
    with pytest.raises(SystemExit):
        main([str(tmp_path / "data.jsonl"), "--json", str(tmp_path / "out.json")])
    (problem,) = json.loads((tmp_path / "out.json").read_text())["problems"]
    assert problem["kind"] == "unreadable-image" and "it is a pipe, a socket or a device" in problem["detail"]


def test_a_stopped_check_begins_again_when_a_file_of_its_pattern_changed(tmp_path, monkeypatch):
    text = json.dumps({"messages": [{"role": "user", "content": "digit"}, {"role": "assistant", "content": "7"}]}) + "\n"
    (tmp_path / "part-0.jsonl").write_text("x" * (len(text) - 1) + "\n" + text * 100)
    command = [str(tmp_path / "part-*.jsonl"), "--json", str(tmp_path / "out.json"), "--workers", "1"]
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Checker, "__call__", stop_at_record(50))
        main(command)
    (tmp_path / "part-0.jsonl").write_text(text * 101)
    main(command)
    assert json.loads((tmp_path / "out.json").read_text())["counts"] == {"duplicate": 100}


def stop_at_record(last: int) -> Callable[[Checker, int], Checked]:
    check = Checker.__call__

    def stopping(self: Checker, index: int) -> Checked:
        if index == last:
            raise KeyboardInterrupt
        return check(self, index)

    return stopping
