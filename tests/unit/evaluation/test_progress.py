"""What an evaluation prints on the way, where standard output is no terminal."""

from owl3_jax.evaluation import progress
from owl3_jax.evaluation.progress import Progress


def test_the_end_is_always_said_and_little_else(capsys):
    with Progress(7) as shown:
        for count in (2, 2, 3):
            shown.advance(count)
    assert capsys.readouterr().out == "answered 7/7 questions\n"


def test_lines_come_when_time_has_passed(capsys, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    with Progress(7) as shown:
        for count in (2, 2, 3):
            shown.advance(count)
    assert capsys.readouterr().out.splitlines() == [f"answered {done}/7 questions" for done in (2, 4, 7)]
