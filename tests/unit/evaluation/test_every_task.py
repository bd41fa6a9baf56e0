"""Every benchmark from its files to answers, with a scripted model: images, crops, videos and their frames."""

import dataclasses
import hashlib
import json
from pathlib import Path

import fsspec
import pytest
from PIL import Image

from owl3_jax.config import EvalConfig
from owl3_jax.evaluation.answering import answer_questions
from owl3_jax.evaluation.asked import Selection, ask_all
from owl3_jax.evaluation.data_root import DataRoot
from owl3_jax.evaluation.run import Run, finish, samples_of
from owl3_jax.evaluation.tasks import choose
from owl3_jax.inference.results import Record
from owl3_jax.processing.images import load_image
from tests.unit.evaluation.benchmark_files import write, write_all, write_lines
from tests.unit.evaluation.toys import MODEL, PROCESSOR, Answering

ROOMY = dataclasses.replace(MODEL, max_position_embeddings=4096)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_all(tmp_path_factory.mktemp("data"))


def run(
    root: Path | str, output: Path, tasks: str, model: Answering | None = None, **settings: object
) -> dict[tuple[str, str], Record]:
    model = model or Answering(lambda prompt: f"A {prompt.num_images}")
    model.engine.runtime.config = ROOMY
    config = EvalConfig(**{"distractor_images": (1, 2), **settings})
    data, chosen = DataRoot(str(root), config), choose(tasks.split(","), config.frames)
    asked = ask_all(chosen.tasks.values(), data, Selection())
    records, spent = answer_questions(asked, data, output / "answers.jsonl", ROOMY, PROCESSOR, model.load)
    finish(Run(chosen, data, samples_of(asked, records), output, {"checkpoint": "scripted"}, spent))
    return records


def test_all_tasks_run_end_to_end(root, tmp_path):
    records = run(root, tmp_path, "all", exact_match_images=(1, 2), questions=2, distractor_questions=1)
    failed = {key: record["error"] for key, record in records.items() if "error" in record}
    assert not failed and len(records) > 100
    text = {key: record["answers"][0]["text"] for key, record in records.items()}
    assert text["nextqa_mc_test", "2440175990_3"] == "A 8" and text["videomme", "001-1"] == "A 128"
    assert text["longvideobench_val_v", "lv_0"] == "A 64" and text["mlvu_dev", "1_plotQA/0"] == "A 128"
    assert text["mvbench", "action_sequence/0"] == text["mvbench", "episodic_reasoning/0"] == "A 16"
    frames = {key[1]: record["frames"][0] for key, record in records.items() if key[0] == "mvbench"}
    # 30 frames at 10 a second, 0.5 to 2 s: 15 frames for 16 parts. The episode at 3 a second: images 3 to 9 of 12.
    assert frames["action_sequence/0"] == [*range(5, 20), 19] and frames["action_antonym/0"][0] == 0
    assert set(frames["episodic_reasoning/0"]) == set(range(2, 9))
    samples = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert {(each["task"], each["id"]) for each in samples} == set(records)
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert {"pope", "llava_interleave_bench_out_domain", "mmbench_dev_en", "distractor_resistance"} <= set(scores)
    assert len(list((tmp_path / "submissions").iterdir())) == 5


def test_files_of_a_bucket_give_the_questions_images_and_videos_of_the_disk(root, tmp_path):
    bucket = fsspec.filesystem("memory")
    for path in root.rglob("*"):
        if path.is_file():
            bucket.pipe_file(f"/benchmarks/{path.relative_to(root)}", path.read_bytes())
    model = Answering(lambda prompt: hashlib.md5(b"".join(view.tobytes() for view in prompt.views())).hexdigest())
    tasks = "mmbench_dev_en,ai2d,vqav2_val,nlvr2,mantis_eval,mi_bench,nextqa,videomme_w_subtitle,mvbench"
    here = run(root, tmp_path / "here", tasks, model, frames=(2,))
    there = run("memory://benchmarks", tmp_path / "there", tasks, model, frames=(2,))
    for key, record in here.items():
        assert {**there[key], "id": ""} == {**record, "id": ""} and "error" not in record
    assert len(here) == len(there) == 29


def test_single_images_are_seen_in_crops_and_several_are_not(root, tmp_path):
    size = PROCESSOR.image_size
    wide = Image.new("RGB", (8 * size, 4 * size))
    wide.save(tmp_path / "wide.png")
    for place in ("images/gqa/images/n1.jpg", "dataset/mi_bench/x.png"):
        write(tmp_path / place, (tmp_path / "wide.png").read_bytes())
    row = {"question_id": 1, "question": "What?", "image": "n1.jpg", "answer": "bed"}
    write_lines(tmp_path / "dataset/gqa/testdev_balanced.jsonl", [row])
    for name in ("multi_image_instruction", "multimodal_knowledge_seeking"):
        source = root / f"dataset/mi_bench/{name}.json"
        write(tmp_path / f"dataset/mi_bench/{name}.json", source.read_bytes())
    records = run(tmp_path, tmp_path / "out", "gqa,mi_bench")
    assert records["gqa", "1"]["answers"][0]["text"] == "A 7"  # 2 by 3 and the whole
    assert records["mi_bench", "g1/0"]["answers"][0]["text"] == "A 2"
    records = run(tmp_path, tmp_path / "whole", "gqa", crop=False)
    assert records["gqa", "1"]["answers"][0]["text"] == "A 1"


def test_a_sweep_takes_all_frames_from_the_largest_number_and_decodes_them_once(root, tmp_path, monkeypatch):
    decoded = []
    monkeypatch.setattr(
        "owl3_jax.processing.media.squash", lambda frame, size, squash=_squash: decoded.append(1) or squash(frame, size)
    )
    records = run(root, tmp_path, "mlvu_dev", frames=(4, 2, 12))
    frames = {name: record["frames"][0] for (name, _), record in records.items()}
    assert {name: len(each) for name, each in frames.items()} == {"mlvu_dev@2": 2, "mlvu_dev@4": 4, "mlvu_dev@12": 12}
    assert set(frames["mlvu_dev@2"]) | set(frames["mlvu_dev@4"]) <= set(frames["mlvu_dev@12"])
    assert len(decoded) == 12
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert set(scores) == {"mlvu_dev@2", "mlvu_dev@4", "mlvu_dev@12"}
    assert choose(scores).tasks["mlvu_dev@4"].questions(DataRoot(str(root)))[0].videos[0].frames == 4


def test_images_that_many_questions_show_are_decoded_once(root, tmp_path, monkeypatch):
    decoded = []
    monkeypatch.setattr(
        "owl3_jax.evaluation.asked.load_image", lambda source, name: decoded.append(name) or load_image(source, name)
    )
    records = run(root, tmp_path, "distractor_resistance", distractor_images=(2,), distractor_draws=5)
    assert len(records) == 55 and len(decoded) == 2
    whole = run(root, tmp_path / "again", "distractor_resistance", distractor_images=(2,), distractor_draws=5, crop=True)
    assert len(decoded) == 2 and whole.keys() == records.keys()


def test_one_number_of_frames_replaces_the_benchmarks(root, tmp_path):
    records = run(root, tmp_path, "nextqa", frames=(3,))
    assert {key[0] for key in records} == {"nextqa"}
    assert all(len(record["frames"][0]) == 3 for record in records.values())


def _squash(frame, size):
    from owl3_jax.processing.images import squash

    return squash(frame, size)


def test_needles_are_on_one_photograph_and_are_scored(tmp_path):
    for number in range(3):
        Image.new("RGB", (300, 200), (number, 0, 0)).save(tmp_path / f"{number}.jpg")
    white: list[int] = []

    def count_white(prompt) -> str:
        white.append(sum(int(view.max(axis=2).max() > 120) for view in prompt.views()))
        return "It is 1234."

    records = run(tmp_path, tmp_path / "out", f"needles:{tmp_path}", Answering(count_white), needle_images=(1, 5))
    assert len(records) == 80 and set(white) == {1}
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())[f"needles:{tmp_path}"]
    assert scores["official"]["accuracy"] < 5 and "accuracy @5" in scores["official"]
    assert (tmp_path / "out" / "needles_places.png").stat().st_size > 0


OWN = [
    {"question": "What is it?", "image": "a.png", "options": ["a cat", "a dog"], "answer": "B"},
    {"question": "<image> or <image>?", "images": ["a.png", "a.png"], "answer": ["the first", "1st"], "id": "two"},
    {"question": "Next?", "video": "v", "options": {"A": "rain", "B": "snow"}, "answer": "snow", "split": "video"},
    {"messages": [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "a cat"}], "image": "a.png"},
    {"question": "2 + 2?", "answer": 4},
]


def test_a_file_of_ones_own(tmp_path):
    write_lines(tmp_path / "mine.jsonl", OWN)
    for name in ("a.png", "v/1.png", "v/2.png"):
        write(tmp_path / name, b"")
        Image.new("RGB", (9, 9)).save(tmp_path / name)
    given = {"0": "B.", "two": "First", "2": "snow", "3": "cat", "4": "four"}
    task = f"file:{tmp_path}/mine.jsonl"
    questions = {each.id: each for each in choose([task]).tasks[task].questions(DataRoot())}
    assert list(questions) == list(given)
    assert questions["0"].text.startswith("<|image|>\nWhat is it?\nOptions:\nA. a cat\nB. a dog\n")
    assert questions["two"].text.startswith("<|image|> or <|image|>?\n") and questions["3"].text == "<|image|>What?"
    judged = {name: choose([task]).tasks[task].judge(each, given[name]).official for name, each in questions.items()}
    assert judged == {"0": 1, "two": 1, "2": 1, "3": 1, "4": 1}
    records = run(tmp_path, tmp_path / "out", task)
    assert [record["answers"][0]["text"] for record in records.values()] == ["A 1", "A 2", "A 16", "A 1", "A 0"]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"question": "What?"}, "needs a question that is a text, and an answer"),
        ({"answer": "B"}, "has neither a question nor a conversation"),
        ({"question": "?", "answer": "C", "options": ["x", "y"]}, "is 'C', which is none of its options"),
        ({"question": "?", "answer": "A", "options": ["x"]}, "options must be a list of 2 to 26 texts"),
        ({"question": "<image>?", "answer": "A"}, "has 0 images and 1 <image> in its question"),
        ({"question": "?", "answer": "", "image": "a.png"}, "has no answer"),
        ({"question": "?", "answer": "x", "images": [1]}, "its images must be paths"),
        ([1], "is not an object"),
    ],
)
def test_a_wrong_record_of_a_file_is_named(tmp_path, record, message):
    (tmp_path / "mine.jsonl").write_text(json.dumps(OWN[4]) + "\n" + json.dumps(record))
    with pytest.raises(ValueError, match=r"(record|row) 1 of .*mine\.jsonl") as raised:
        choose([f"file:{tmp_path}/mine.jsonl"]).tasks[f"file:{tmp_path}/mine.jsonl"].questions(DataRoot())
    assert message in str(raised.value)
