"""Every benchmark on small files in its official layout: prompts, and scores of answers worked out by hand, quirks included."""

import io
import json
from pathlib import Path

import openpyxl
import pytest

from owl3_jax.cli.eval import main
from owl3_jax.config import EvalConfig
from owl3_jax.evaluation.data_root import DataRoot
from owl3_jax.evaluation.tasks import TASKS, find_task
from owl3_jax.processing.images import load_image
from tests.unit.evaluation.benchmark_files import write_all

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
