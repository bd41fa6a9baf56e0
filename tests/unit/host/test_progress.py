"""What a run prints: on a terminal, elsewhere, and where it shall print nothing."""

import io
import sys

import pytest

from owl3_jax.host import progress as module
from owl3_jax.host.progress import Progress, reading_images
from owl3_jax.training.metrics import format_values

VALUES = {
    "loss": 2.34567,
    "accuracy": 0.25,
    "learning_rate": 1e-3,
    "grad_norm": 0.5,
    "tokens_per_second": 12345.6,
    "images_per_second": 789.1,
    "skipped_samples": 0.0,
    "bad_steps": 0.0,
    "seconds/step": 9.9,
    "seconds/data": 0.1,
}
LINE = "step 20/100  loss 2.3457  accuracy 0.250  learning rate 1.00e-03  12,346 tokens/s  789 images/s"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run(**settings) -> None:
    with Progress(100, "step", done=19, **settings) as progress:
        progress.say("a line")
        progress.advance()
        progress.note(format_values(VALUES))


def answer_questions(lines_every: float) -> None:
    with Progress(7, "question", lines_every=lines_every, line="answered {done}/{total} {unit}s") as shown:
        for count in (2, 2, 3):
            shown.advance(count)


def test_plain_lines_where_there_is_no_terminal(capsys):
    run()
    assert capsys.readouterr().out == f"a line\n{LINE}\n"


def test_skipped_images_are_shown(capsys):
    with Progress(100, "step", done=20) as progress:
        progress.note(format_values(VALUES | {"skipped_samples": 3.0}))
    assert capsys.readouterr().out == f"{LINE}  3 samples skipped\n"


def test_what_a_person_should_know_is_shown(capsys):
    with Progress(100, "step", done=20) as progress:
        progress.note(format_values(VALUES | {"mfu": 0.512, "bad_steps": 2.0, "seconds/data": 1.1}))
    assert capsys.readouterr().out == f"{LINE}  MFU 51.2%  10% of the time waiting for data  2 bad steps\n"


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    run()
    assert "a line\n" in terminal.getvalue()
    assert "| 20/100 [" in terminal.getvalue()
    assert "loss 2.3457" in terminal.getvalue()


@pytest.mark.parametrize("stdout", [io.StringIO(), Terminal()])
def test_a_silent_one_prints_nothing(monkeypatch: pytest.MonkeyPatch, stdout: io.StringIO):
    monkeypatch.setattr("sys.stdout", stdout)
    run(silent=True, lines_every=0.0)
    assert stdout.getvalue() == ""


def test_the_end_is_always_said_and_little_else(capsys):
    answer_questions(lines_every=10.0)
    assert capsys.readouterr().out == "answered 7/7 questions\n"


def test_lines_come_when_time_has_passed(capsys):
    answer_questions(lines_every=0.0)
    assert capsys.readouterr().out.splitlines() == [f"answered {done}/7 questions" for done in (2, 4, 7)]


def test_no_lines_on_a_terminal(monkeypatch: pytest.MonkeyPatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    answer_questions(lines_every=0.0)
    assert "| 7/7 [" in terminal.getvalue() and "answered" not in terminal.getvalue()


def test_a_size_is_learnt_on_the_way(capsys):
    with Progress(None, "B", file=sys.stderr, lines_every=0.0, line="converted {done} of {total}") as shown:
        shown.advance(500, 12_345)
        shown.advance(11_845, 12_345)
    assert capsys.readouterr().err == "converted 500B of 12.3kB\nconverted 12.3kB of 12.3kB\n"


def test_the_bar_of_images_vanishes_with_the_last_one(monkeypatch: pytest.MonkeyPatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setattr(module, "_SECONDS_UNSEEN", 0.0)
    with reading_images() as shown:
        shown.advance(1, 2)
        assert "reading images" in terminal.getvalue()
        shown.advance(1, 2)
        assert terminal.getvalue().endswith("\r")
