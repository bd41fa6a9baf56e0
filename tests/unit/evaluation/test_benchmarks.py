"""Every benchmark on small files in its official layout: prompts, and scores of answers worked out by hand, quirks included."""

import dataclasses
import io
import json
from pathlib import Path

import openpyxl
import pytest

from owl3_jax.cli.eval import main
from owl3_jax.config import ConfigError, EvalConfig
from owl3_jax.evaluation import data_root, strict
from owl3_jax.evaluation.data_root import DataError, DataRoot
from owl3_jax.evaluation.tasks import TASKS, find_task
from owl3_jax.host import storage
from owl3_jax.processing.images import load_image
from tests.unit.evaluation.benchmark_files import write, write_all, write_lines

LETTER = "Answer with the option\u2019s letter from the given choices directly."
WORD = "Answer the question using a single word or phrase."


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_all(tmp_path_factory.mktemp("data"))


def questions(root: Path, task: str, **settings: object) -> list:
    return list(find_task(task).questions(DataRoot(str(root), EvalConfig(**settings))))


def score(root: Path, output: Path, task: str, answers: list[str], *flags: str) -> dict:
    """The scores of answers in the order of the questions, as the command writes them."""
    ids = [question.id for question in questions(root, task)]
    lines = [{"task": task, "id": name, "answer": answer} for name, answer in zip(ids, answers, strict=True)]
    path = output / "answers.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    main(["--answers", str(path), "--tasks", task, "--data-root", str(root), "--output", str(output), *flags])
    return json.loads((output / "scores.json").read_text())[task]


PROMPTS = {
    "ok_vqa_val2014": f"<|image|>What colour? {WORD}",
    "vqav2_val": f"<|image|>What colour? {WORD}",
    "textvqa_val": f"<|image|>Which brand? {WORD}",
    "vizwiz_vqa_test": "<|image|>What is it? When the provided information is insufficient, respond with 'Unanswerable'. "
    + WORD,
    "gqa": f"<|image|>What? {WORD}",
    "pope_popular": f"<|image|>Is there a dog? {WORD}",
    "mmbench_dev_cn": "<|image|>Context: N/A\nQuestion: Which colour?\nOptions: A. red\nB. blue\nC. green\nD. white\n" + LETTER,
    "mmbench_test_en": f"<|image|>Context: N/A\nQuestion: =Which?\nOptions: A. red\nB. blue\n{LETTER}",
    "mmvet": "<|image|>\nWhat is 0?",
    "ai2d": f"<|image|>\nQuestion: Which?\nOptions:\nA. frog\nB. fly\nC. fish\nD. 2\n{LETTER}",
    "nlvr2": "Left image: <|image|> Right image: <|image|>\nBoth are dogs.\n"
    "yes or no? Answer the question using a single word.",
    "qbench2_dev": "Image 1: <|image|>\nImage 2: <|image|>\nQuestion: Which is sharper?\n"
    f"Options: A. first\nB. second\n{LETTER}",
    "nextqa_mc_test": "<|video|>\nQuestion: why?\nOptions: A. reason 0\nB. reason 1\nC. reason 2\nD. reason 3\nE. reason 4\n"
    + LETTER,
    "mvbench": f"<|video|>\nQuestion: What?\nOptions:\nA. open\nB. close\nC. throw\n{LETTER}",
    "videomme": f"<|video|>\nQuestion: What?\nOptions: A. cat.\nB. dog.\nC. cow.\nD. ox.\n{LETTER}",
    "videomme_w_subtitle": "<|video|>\nThis video's subtitles are listed below:\nhello world\nQuestion: What?\n"
    f"Options: A. cat.\nB. dog.\nC. cow.\nD. ox.\n{LETTER}",
    "longvideobench_val_v": f"Question: <|video|>\nWhat?\nOptions: A. a cat\nB. a dog\n{LETTER}",
    "mlvu_dev": f"<|video|>\nQuestion: What?\nOptions:\nA. red\nB. blue\n{LETTER}",
    "mantis_eval": "Compare Image 1: <|image|>  and Image 2: <|image|> .\n"
    "Answer with the option's letter from the given choices directly.",
    "mathverse_mv": "Image 1: <|image|> Image 2: <|image|> \nSolve.\n"
    "Answer with the option's letter from the given choices directly.",
    "sciverse_mv": "Image 1: <|image|> Image 2: <|image|> \nSolve. \nPlease select the correct paired scientific diagram "
    "from four given images. Answer with the option's letter from the given choices directly.",
    "blink": f"the first image: <|image|> the second image: <|image|> \nWhich is older?\n{LETTER}",
    "mi_bench": f"<|image|><|image|>Which?\nOptions: A. one\nB. two\nC. three\n{LETTER}",
    "distractor_resistance": f"Image 1: <|image|>. In Image 1, Which colour?\nA. red\nB. blue\nC. green\nD. white\n{LETTER}",
}


@pytest.mark.parametrize("task", PROMPTS)
def test_the_prompt_is_the_released_one(root, task):
    assert questions(root, task)[0].text == PROMPTS[task]


@pytest.mark.parametrize("task", [name for name in TASKS if not name.startswith("digits")])
def test_all_images_and_videos_are_found(root, task):
    data = DataRoot(str(root))
    for question in questions(root, task):
        for name in question.images:
            assert load_image(find_task(task).image(data, name), name).size == (12, 12)
        for video in question.videos:
            assert Path(str(data.file(video.file))).exists()


def test_crops_are_on_for_single_images_alone():
    single = {name for name, task in TASKS.items() if task.crop}
    assert single == {
        *(
            "vqav2_val",
            "vqav2_test",
            "ok_vqa_val2014",
            "gqa",
            "vizwiz_vqa_val",
            "vizwiz_vqa_test",
            "textvqa_val",
            "mmvet",
            "ai2d",
        ),
        *("pope_random", "pope_popular", "pope_adversarial"),
        *(f"mmbench_{split}_{language}" for split in ("dev", "test") for language in ("en", "cn")),
    }


# task: answers in the order of the questions, official accuracy, strict accuracy
SCORED = {
    # 7 of 10 say red: 1. `two` becomes 2, of which there are 2 and four `two` that are not normalised: 2 others at most.
    "ok_vqa_val2014": (["Red.", "two"], 80.0, 80.0),
    "textvqa_val": (["", "maroon"], 0.0, 0.0),
    "vqav2_val": (["the red", "2"], 80.0, 80.0),
    "vizwiz_vqa_val": (["red, I think", "Unanswerable."], 100.0, 100.0),
    # `sofa bed` is `bed` by the first score, `This is red` is empty; strictly whole words are compared.
    "gqa": (["sofa bed", "It is a red car.", "sofa bed", "yes, it is"], 75.0, 25.0),
    "ai2d": (["B", "D. 1"], 100.0, 100.0),
    "nlvr2": (["Yes.", "no, not", "None"], 200 / 3, 200 / 3),
    # The second question's option B has the text of option A, which is right by the released code.
    "qbench2_dev": (["it is B", "A."], 100.0, 100.0),
    "nextqa_mc_test": (["c", "The answer is A"], 50.0, 100.0),
    # An empty answer is right; `(B)` and the option's text are not, though they are strictly.
    "mvbench": (["", "(B)", "B", "close", "B"], 60.0, 80.0),
    # Without a letter it is A.
    "videomme": (["I see a dog", "nothing"], 50.0, 0.0),
    "videomme_w_subtitle": (["Best answer: B", "A"], 100.0, 100.0),
    "longvideobench_val_v": (["B", ""], 100.0, 50.0),
    "mlvu_dev": (["A"], 0.0, 0.0),
    "mantis_eval": (["B. the cat", "a"], 50.0, 100.0),
    "mathverse_mv": (["Answer: C"], 100.0, 100.0),
    "sciverse_mv": (["(D)"], 100.0, 100.0),
    "blink": (["B"], 0.0, 0.0),
    # All rotations of the first item are right; of the second, two.
    "mi_bench": (["B", "a", "C", "C", "B", "B"], 50.0, 50.0),
}


@pytest.mark.parametrize("task", SCORED)
def test_scores_by_hand(root, tmp_path, task):
    answers, official, strict = SCORED[task]
    scores = score(root, tmp_path, task, answers)
    assert scores["official"]["accuracy"] == pytest.approx(official)
    assert scores["strict"]["accuracy"] == pytest.approx(strict)


def test_gqa_has_two_scores(root, tmp_path):
    scores = score(root, tmp_path, "gqa", ["bed", "red car", "Sofa bed!", "yes"])
    assert scores["official"]["accuracy"] == 75 and scores["official"]["evalai_accuracy"] == 100


def test_pope_leaves_out_what_is_neither_yes_nor_no(root, tmp_path):
    scores = score(root, tmp_path, "pope_random", ["Yes", "yes.", "no", "No, none", "maybe"])
    official, strict = scores["official"], scores["strict"]
    assert official["accuracy"] == pytest.approx(50) and strict["accuracy"] == pytest.approx(40)
    assert official["precision"] == pytest.approx(50) and official["recall"] == pytest.approx(50)
    assert official["f1"] == pytest.approx(50) and official["yes_ratio"] == pytest.approx(40)
    assert strict["recall"] == pytest.approx(100 / 3)


def test_pope_as_one_benchmark_is_the_mean_of_its_sets(root, tmp_path):
    lines = [
        {"task": f"pope_{name}", "id": number, "answer": "yes" if name == "random" else "no"}
        for name in ("random", "popular", "adversarial")
        for number in range(1, 6)
    ]
    (tmp_path / "answers.jsonl").write_text("\n".join(map(json.dumps, lines)))
    main(["--answers", str(tmp_path / "answers.jsonl"), "--tasks=pope", f"--data-root={root}", f"--output={tmp_path}"])
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["pope"]["official"]["accuracy"] == pytest.approx((60 + 40 + 40) / 3)
    assert set(scores) == {"pope", "pope_random", "pope_popular", "pope_adversarial"}


def test_mmbench_counts_questions_and_rows(root, tmp_path):
    # Question 1 is right in both orders; 2 in the first alone; an empty answer to 3 is A, which is wrong.
    scores = score(root, tmp_path, "mmbench_dev_en", ["A", "two", "B. red", "It is A", ""])
    assert scores["official"]["circular_accuracy"] == pytest.approx(100 / 3)
    assert scores["official"]["accuracy"] == pytest.approx(60)
    assert scores["official"]["circular_accuracy (attribute)"] == pytest.approx(50)
    assert scores["official"]["circular_accuracy (number)"] == 0


def test_mmbench_looks_for_letters_from_the_end_of_the_alphabet(root, tmp_path):
    scores = score(root, tmp_path, "mmbench_dev_en", ["Option A: the cat. C.", "B", "B", "C", "B"])
    assert scores["official"]["circular_accuracy"] == pytest.approx(200 / 3)


def test_open_answers_are_scored_by_rouge_l(root, tmp_path):
    scores = score(root, tmp_path, "llava_interleave_bench_in_domain", ["the red car", "anything", "true"])
    # 3 words of 5 and of 3: F = 2 * 0.6 * 1 / 1.6. The second has no right answer. `true` is an exact match.
    assert scores["official"]["accuracy"] == pytest.approx((75 + 100) / 2, abs=1e-4)
    assert scores["strict"]["accuracy"] == pytest.approx((75 + 100) / 2, abs=1e-4)


@pytest.mark.parametrize("task", ["vqav2_test", "vizwiz_vqa_test", "mmvet", "mmbench_test_en"])
def test_what_a_server_scores_becomes_a_file_for_it(root, tmp_path, task):
    scores = score(root, tmp_path, task, ["The cat, maybe.", "=2\x01"])
    assert scores == {"official": {}, "strict": {}}
    (path,) = (tmp_path / "submissions").iterdir()
    if path.suffix == ".json":
        written = json.loads(path.read_text())
        assert written == {
            "vqav2_test": [{"question_id": 1, "answer": "cat maybe"}, {"question_id": 2, "answer": "2\x01"}],
            "vizwiz_vqa_test": [
                {"image": "VizWiz_test_1.jpg", "answer": "The cat"}, {"image": "VizWiz_test_2.jpg", "answer": "=2\x01"}
            ],
            "mmvet": {"v1_0": "The cat, maybe.", "v1_1": "=2\x01"},
        }[task]  # fmt: skip
    else:
        rows = list(openpyxl.load_workbook(io.BytesIO(path.read_bytes())).active.values)
        assert rows == [
            ("index", "question", "prediction", "A", "B", "C", "D"),
            (7, "=Which?", "The cat, maybe.", "red", "blue", None, None),
            (8, "=Which?", "=2", "red", "blue", None, None),
        ]


def test_distractor_resistance_asks_all_orders_and_draws(root):
    asked = questions(root, "distractor_resistance:ai2d", distractor_images=(1, 2, 400), distractor_draws=3)
    by_count = {count: [each for each in asked if each.facts["images"] == count] for count in (1, 2, 400)}
    assert [len(each) for each in by_count.values()] == [2 * 4, 2 * 4 * 3, 0]
    for question in asked:
        assert len(set(question.images)) == len(question.images) == question.facts["images"]
        assert f"In Image {question.target + 1}, " in question.text
        first = next(each for each in asked if each.group.partition("/")[0] == question.group.partition("/")[0])
        assert question.images[question.target] == first.images[0]
        assert question.options["ABCD".index(question.gold)] == first.options["ABCD".index(first.gold)]
    orders = {each.options for each in by_count[1] if each.group == "0/1"}
    assert len(orders) == 4


def test_a_hint_of_mmbench_comes_before_the_question(root):
    hinted = next(each for each in questions(root, "distractor_resistance") if "How many" in each.text)
    assert "In Image 1, Count\nthem\nHow many?\nA. one\nB. two\nC. ten\n" in hinted.text


def test_frames_of_the_clips_of_mvbench(root):
    first, _, whole, _, episode = (each.videos[0] for each in questions(root, "mvbench")[:5])
    assert (first.start, first.end, whole.start) == (0.5, 2.0, None)
    assert episode.folder_fps == 3
    assert all(each.frames == 16 for each in (first, whole, episode))


def gold(data: Path, task: str) -> list[str | None]:
    return [each.gold for each in find_task(task).questions(DataRoot(str(data)))]


def test_options_that_are_letters_do_not_stand_for_the_letter_of_the_right_one(tmp_path):
    head = "index\tquestion\thint\tA\tB\tC\tanswer\timage\n"
    write(tmp_path / "dataset/mmbench/mmbench_dev_en.tsv", head + "1\tWhich?\t\tB\tC\tA\tA\tx\n2\tWhich?\t\tC\tA\tNone\tC\ty\n")
    assert gold(tmp_path, "mmbench_dev_en") == ["A", "C"]
    row = {"videoID": "v", "question": "?", "options": ["A. B", "B. A", "C. C"], "answer": "A"}
    write_lines(tmp_path / "dataset/videomme/test.jsonl", [row])
    assert gold(tmp_path, "videomme") == ["A"]
    pair = {"question": "?", "option0": "B", "option1": "A", "correct_choice": "B", "image1": "a.png", "image2": "b.png"}
    write_lines(tmp_path / "dataset/Q-Bench2-HF/data/dev.jsonl", [pair])
    assert gold(tmp_path, "qbench2") == ["B"]
    rows = [
        {"question": "?", "options": ["B", "A"], "answer": "A"},
        {"question": "?", "options": {"B": "dog", "A": "cat"}, "answer": "A"},
        {"question": "?", "options": ["B. dog", "A. cat"], "answer": "B. dog"},
        {"question": "?", "options": {"1": "dog", "2": "cat"}, "answer": "1"},
    ]
    write_lines(tmp_path / "mine.jsonl", rows)
    assert gold(tmp_path, f"file:{tmp_path}/mine.jsonl") == ["A", "B", "A", "A"]
    write_lines(tmp_path / "mine.jsonl", [{"question": "?", "options": [1, 2, 3, 4], "answer": 3}])
    with pytest.raises(DataError, match="its answer 3 is the text of one option and the place of another"):
        gold(tmp_path, f"file:{tmp_path}/mine.jsonl")


def test_distractors_show_other_pictures_than_the_targets(tmp_path):
    lines = [f"{number}\tQuestion {number}?\tx\ty\tA\t{'abc'[number % 3] * 80}" for number in range(9)]
    write(tmp_path / "dataset/mmbench/mmbench_dev_en.tsv", "index\tquestion\tA\tB\tanswer\timage\n" + "\n".join(lines))
    asked = questions(tmp_path, "distractor_resistance", distractor_images=(1, 2, 3, 5))
    assert {each.facts["images"] for each in asked} == {1, 2, 3}
    assert all(len(set(each.images)) == len(each.images) for each in asked)
    with pytest.raises(ConfigError, match="needs multiple choice about single images with known answers"):
        questions(write_all(tmp_path), "distractor_resistance:mmbench_test_en")


def test_a_damaged_split_and_a_missing_part_are_errors(root, tmp_path):
    write_all(tmp_path)
    (tmp_path / "dataset/mvbench/json/action_antonym.json").write_text('[{"video": "v.mp4", "que')
    with pytest.raises(DataError, match=r"action_antonym\.json is not valid JSON"):
        questions(tmp_path, "mvbench")
    (tmp_path / "dataset/ai2d/data/test-00001-of-00002.parquet").unlink()
    with pytest.raises(DataError, match="is one of 2 files; number 1 is missing"):
        questions(tmp_path, "ai2d")
    (tmp_path / "dataset/gqa/testdev_balanced.jsonl").write_text('{"question_id": 1}')
    with pytest.raises(DataError, match="a row of GQA has no answer"):
        questions(tmp_path, "gqa")


DAMAGED = {
    "dataset/mmvet/mm-vet.json": ('{"v": 3}', "mmvet", "question v of MM-Vet is not an object"),
    "dataset/okvqa/mscoco_val2014_annotations.json": (
        '{"annotations": [{"question_id": 1, "answers": ["dog"]}]}', "okvqa", "has no answers to question 1, each an object",
    ),
    "dataset/LLaVA-NeXT-Interleave-Bench/multi_image_out_domain.json": (
        '[{"image": "a.jpg", "conversations": [{"value": "?"}], "metadata": "x"}]',
        "blink", "row 0 of .* needs a list of images",
    ),
    "dataset/LongVideoBench/lvb_val.json": (
        '[{"video_path": "l.mp4", "question": "?", "candidates": "abc", "correct_choice": 0}]',
        "longvideobench", "its options must be a list of 2 to 26 texts",
    ),
    "dataset/mmbench/mmbench_dev_en_20231003.tsv": (
        "index\tquestion\tA\tB\tanswer\n1\t?\tx\ty\tA", "mmbench_dev_en", "no column `image`",
    ),
    "dataset/mlvu/json/1_plotQA.json": (
        '[{"video": "m.mp4", "question": "?", "candidates": ["", "x"], "answer": ""}]', "mlvu", "has no text",
    ),
}  # fmt: skip


@pytest.mark.parametrize("file", DAMAGED)
def test_damaged_data_is_an_error_that_names_the_place(tmp_path, file):
    write_all(tmp_path)
    content, task, message = DAMAGED[file]
    (tmp_path / file).write_text(content)
    with pytest.raises(DataError, match=message):
        questions(tmp_path, task)


def test_answers_are_stripped_and_a_question_without_one_is_wrong_in_pope(root, tmp_path):
    assert score(root, tmp_path, "ai2d", [" B", "D\n"])["official"]["accuracy"] == 100
    (tmp_path / "a.jsonl").write_text(
        '{"task": "pope_random", "id": 1, "answer": "yes"}\n{"task": "typo", "id": 1, "answer": ""}'
    )
    with pytest.raises(SystemExit, match="4 of 5 questions have no answer"):
        main(["--answers", f"{tmp_path}/a.jsonl", "--tasks=pope_random", f"--data-root={root}", f"--output={tmp_path}/out"])
    assert json.loads((tmp_path / "out/scores.json").read_text())["pope_random"]["official"]["accuracy"] == 20


def test_texts_with_formulas_and_half_characters_end_no_run(root, tmp_path, capsys):
    scores = score(root, tmp_path, "okvqa", [r"$\foo{$ $x^$", "\ud800" + "long " * 5000])
    assert scores["official"]["accuracy"] == 0 and (tmp_path / "report.html").exists()


def test_long_texts_are_scored(root, tmp_path):
    long = " ".join(f"word{number}" for number in range(1500))
    question = find_task("in_domain").questions(DataRoot(str(root)))[0]
    judged = find_task("in_domain").judge(dataclasses.replace(question, gold=long), long)
    assert judged.strict == 1 and 0 < judged.official < 0.2  # the released code cuts answers to 512 letters
    assert strict.letter("answer" + " " * 80_000 + "x", 4) is None  # without trying all ways to read the spaces


def test_folders_of_videos_are_not_searched_for_data(root, monkeypatch):
    looked, children = [], storage.children
    monkeypatch.setattr(storage, "children", lambda folder: looked.append(str(folder)) or children(folder))
    data_root._data_files.cache_clear()
    questions(root, "mvbench")
    assert len(looked) == 2 and not any("video" in each for each in looked)
