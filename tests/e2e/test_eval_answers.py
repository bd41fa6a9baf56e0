"""`owl3 eval` without a model: answers that exist, rescoring, shards, lists, a judge, and wrong input."""

import contextlib
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from owl3_jax.cli.eval import main
from owl3_jax.evaluation.data_root import DataRoot
from owl3_jax.evaluation.tasks import find_task
from tests.unit.evaluation.benchmark_files import write_all


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return write_all(tmp_path_factory.mktemp("data"))


def write_answers(path: Path, root: Path, task: str, answer: str = "A", name: str | None = None) -> Path:
    questions = find_task(task).questions(DataRoot(str(root)))
    path.write_text("\n".join(json.dumps({"task": name or task, "id": each.id, "answer": answer}) for each in questions))
    return path


def score(root: Path, answers: Path, output: Path, tasks: str, *flags: str) -> dict:
    main(["--answers", str(answers), "--tasks", tasks, "--data-root", str(root), "--output", str(output), *flags])
    return json.loads((output / "scores.json").read_text())


def test_a_task_may_have_any_of_its_names_and_keeps_the_one_that_was_asked_for(root, tmp_path):
    answers = write_answers(tmp_path / "a.jsonl", root, "ok_vqa_val2014", "red", name="okvqa_val")
    assert set(score(root, answers, tmp_path / "out", "okvqa")) == {"okvqa"}
    answers = write_answers(tmp_path / "b.jsonl", root, "mmbench_dev_en", name="mmbench_en_dev")
    assert set(score(root, answers, tmp_path / "out", "mmbench_dev_en_20231003")) == {"mmbench_dev_en_20231003"}


def test_benchmarks_of_several_tasks_and_patterns(root, tmp_path):
    lines = [
        {"task": "out_domain", "id": name, "answer": answer} for name, answer in enumerate(["B", "A", "C", "D", "x"], start=1)
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    scores = score(root, tmp_path / "a.jsonl", tmp_path / "out", "out_domain")
    assert scores["out_domain"]["official"]["accuracy"] == 75 and scores["mantis_eval"]["official"]["accuracy"] == 100
    (tmp_path / "b.jsonl").write_text(json.dumps({"task": "pope", "id": 1, "answer": "yes"}))
    with pytest.raises(SystemExit, match="question 1 of pope is one of pope_random and pope_popular and pope_adversarial"):
        score(root, tmp_path / "b.jsonl", tmp_path / "out", "pope")


def test_answers_of_a_sweep_name_their_number_of_frames(root, tmp_path):
    answers = write_answers(tmp_path / "a.jsonl", root, "videomme", "A", name="videomme@4")
    assert set(score(root, answers, tmp_path / "out", "videomme@4")) == {"videomme@4"}
    answers = write_answers(tmp_path / "b.jsonl", root, "videomme", "A")
    assert set(score(root, answers, tmp_path / "out", "videomme@4")) == {"videomme@4"}
    with pytest.raises(SystemExit, match=r"line 1 of .*b\.jsonl: question .* of videomme is one of videomme@2 and videomme@4"):
        score(root, answers, tmp_path / "out", "videomme", "--frames", "2", "4")


def test_a_comma_in_a_path_is_written_with_a_backslash(tmp_path):
    (tmp_path / "mine, too.jsonl").write_text('{"question": "1 + 1?", "answer": "2"}')
    task = f"file:{tmp_path}/mine, too.jsonl"
    (tmp_path / "a.jsonl").write_text(json.dumps({"task": task, "id": "0", "answer": "2."}))
    scores = score(tmp_path, tmp_path / "a.jsonl", tmp_path / "out", task.replace(",", r"\,"))
    assert scores[task]["official"]["accuracy"] == 100


def test_rescoring_joins_shards_and_needs_no_data(root, tmp_path, monkeypatch, capsys):
    answers = write_answers(tmp_path / "a.jsonl", root, "mmbench_dev_en", "B")
    whole = score(root, answers, tmp_path / "whole", "mmbench_dev_en")
    for part in (1, 2, 3):
        score(root, answers, tmp_path / f"{part}", "mmbench_dev_en", f"--shard={part}/3")
    assert "scores of the part 3/3 of the questions" in capsys.readouterr().out
    monkeypatch.chdir(tmp_path)
    main(["--rescore", "1", "2", "3", "--output", "joined"])
    assert "of the part" not in capsys.readouterr().out
    assert json.loads((tmp_path / "joined/scores.json").read_text()) == whole
    before = (tmp_path / "whole/samples.jsonl").read_bytes()
    main(["--rescore", "whole"])
    assert (tmp_path / "whole/samples.jsonl").read_bytes() == before
    assert json.loads(Path("whole/report.json").read_text())["data_root"] == str(root)
    with pytest.raises(SystemExit, match="has two answers in 1, 1"):
        main(["--rescore", "1", "1", "--output", "joined"])


def test_all_tasks_are_listed_with_what_they_need(root, tmp_path, capsys):
    main(["--tasks", "list", "--data-root", str(root)])
    ready = capsys.readouterr().out
    assert "nlvr2  [ready]" in ready and "paper: 1B 75.8, 2B 85.5, 7B-240728 90.8, 7B-241101 92.7" in ready
    assert "mvbench  [files missing]" in ready and "action_prediction" in ready
    main(["--tasks", "list", "--data-root", str(tmp_path)])
    assert "nlvr2  [files missing]" in capsys.readouterr().out


def test_ids_are_listed(root, capsys):
    main(["--list-ids", "nlvr2", "--data-root", str(root)])
    assert capsys.readouterr().out == "test-0\ntest-1\ntest-2\n"
    with pytest.raises(SystemExit, match="pope is several tasks with the same ids"):
        main(["--list-ids", "pope", "--data-root", str(root)])


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('{"task": "ai2d", "id": 0}', 'line 1 of .* must be an object with "task", "id" and "answer"'),
        ("{", "line 1 of .* is not valid JSON"),
        ('{"task": "ai2d", "id": 0, "answer": 3}', "line 1 of .*: task and answer must be texts"),
        ('{"task": "ai2d", "id": null, "answer": "A"}', "line 1 of .*: task and answer must be texts"),
        ('\n\n{"task": "ai2d", "id": 0, "answer": "A"}\n{"task": "ai2d", "id": "0", "answer": "B"}', "line 4 .* second answer"),
        ('{"task": "ai2d", "id": 77, "answer": "A"}', "answers 1 questions that there are not: '77' of ai2d"),
    ],
)
def test_wrong_answers_are_errors_that_name_the_line(root, tmp_path, lines, message):
    (tmp_path / "a.jsonl").write_text(lines)
    with pytest.raises(SystemExit, match=message):
        score(root, tmp_path / "a.jsonl", tmp_path / "out", "ai2d")


def test_a_missing_answer_counts_as_wrong_and_is_said(root, tmp_path, capsys):
    (tmp_path / "a.jsonl").write_text('\ufeff{"task": "ai2d", "id": 0, "answer": "B"}\r\n')
    with pytest.raises(SystemExit, match="1 of 2 questions have no answer and count as wrong: ai2d 1: no answer"):
        score(root, tmp_path / "a.jsonl", tmp_path / "out", "ai2d")
    assert json.loads((tmp_path / "out/scores.json").read_text())["ai2d"]["official"]["accuracy"] == 50
    assert "1 without an answer (counted as wrong)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tasks=ai2d"], "give --checkpoint DIR; or --answers FILE"),
        (["--tasks=ai2dd", "--answers=x", "--output=o"], "unknown task 'ai2dd'; did you mean ai2d"),
        (["--tasks=zz*", "--answers=x", "--output=o"], "no task matches 'zz*'"),
        (["--answers=x", "--output=o"], "give --tasks"),
        (["--tasks=ai2d", "--answers=x"], "give --output"),
        (
            ["--tasks=nlvr2", "--answers=none.jsonl", "--output=o"],
            "there is no dataset/nlvr2 with a file of the split unbalanced_test_public",
        ),
        (["--rescore=none"], "there is no none/samples.jsonl"),
    ],
)
def test_a_wrong_command_line_says_what_to_do(tmp_path, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as raised:
        main(flags)
    assert message in str(raised.value)


@pytest.mark.parametrize("flag", ["--limit=0", "--model-size=3B", "--judge-url=http://x", "--shard=3/2"])
def test_wrong_values_exit_with_2(flag, capsys):
    with pytest.raises(SystemExit) as raised:
        main(["--tasks=ai2d", flag])
    assert raised.value.code == 2


class _Judge(http.server.BaseHTTPRequestHandler):
    asked: list[str] = []  # noqa: RUF012, of all requests

    def do_POST(self) -> None:
        prompt = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"][0]["content"]
        self.asked.append(prompt)
        body = json.dumps({"choices": [{"message": {"content": "0.5" if "What is 0" in prompt else "Score: 1"}}]}).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@contextlib.contextmanager
def judging() -> Iterator[str]:
    server = http.server.HTTPServer(("127.0.0.1", 0), _Judge)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def test_a_judge_scores_open_answers_and_is_asked_once(root, tmp_path):
    answers = write_answers(tmp_path / "a.jsonl", root, "mmvet", "scarlet")
    _Judge.asked.clear()
    with judging() as url:
        flags = (f"--judge-url={url}", "--judge-model=any")
        assert score(root, answers, tmp_path / "out", "mmvet", *flags)["mmvet"]["official"]["accuracy"] == 75
        assert score(root, answers, tmp_path / "out", "mmvet", *flags)["mmvet"]["official"]["accuracy"] == 75
    assert len(_Judge.asked) == 2 and "red<OR>scarlet" in _Judge.asked[0] and "Answer: scarlet" in _Judge.asked[0]
    main(["--rescore", str(tmp_path / "out"), "--output", str(tmp_path / "again")])
    assert json.loads((tmp_path / "again/scores.json").read_text())["mmvet"]["official"]["accuracy"] == 75
    write_answers(answers, root, "mmvet", "another")
    with pytest.raises(SystemExit, match=r"the judge at .* gave no answer"):
        score(root, answers, tmp_path / "out", "mmvet", *flags)


@pytest.mark.parametrize(
    ("said", "accuracy"),
    [("I give 0.7.", 70), ("1.0.", 100), (".5", 50), ("8/10", 0), ("0,5", 0), ("-1", 0), ("none", 0), ("7", 0)],
)
def test_what_a_judge_says_is_a_number_from_0_to_1_or_no_score(root, tmp_path, monkeypatch, said, accuracy):
    monkeypatch.setattr("owl3_jax.evaluation.judge.Judge._ask", lambda self, prompt: said)
    answers = write_answers(tmp_path / "a.jsonl", root, "mmvet", "scarlet")
    flags = ("--judge-url=http://none", "--judge-model=any")
    assert score(root, answers, tmp_path / "out", "mmvet", *flags)["mmvet"]["official"]["accuracy"] == accuracy


@pytest.mark.parametrize(
    "line", ["3", "[1]", '{"task": "x", "id": "1", "prompt": "", "answer": 3, "official": 0, "strict": 0}', "\xff"]
)
def test_damaged_samples_are_named(tmp_path, line):
    (tmp_path / "samples.jsonl").write_bytes(line.encode("latin-1"))
    with pytest.raises(SystemExit, match=r"samples\.jsonl"):
        main(["--rescore", str(tmp_path)])
