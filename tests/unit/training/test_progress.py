import io

import pytest

from owl3_jax.training.progress import Progress

VALUES = {
    "loss": 2.34567,
    "accuracy": 0.25,
    "learning_rate": 1e-3,
    "grad_norm": 0.5,
    "tokens_per_second": 12345.6,
    "images_per_second": 789.1,
    "unreadable_images": 0.0,
}
LINE = "step 20/100  loss 2.3457  accuracy 0.250  learning rate 1.00e-03  12,346 tokens/s  789 images/s"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run(**settings) -> None:
    with Progress(19, 100, **settings) as progress:
        progress.say("a line")
        progress.advance()
        progress.report(20, VALUES)


def test_plain_lines_where_there_is_no_terminal(capsys):
    run()
    assert capsys.readouterr().out == f"a line\n{LINE}\n"


def test_skipped_images_are_shown(capsys):
    with Progress(19, 100) as progress:
        progress.report(20, VALUES | {"unreadable_images": 3.0})
    assert capsys.readouterr().out == f"{LINE}  3 unreadable images skipped\n"


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
    run(silent=True)
    assert stdout.getvalue() == ""
