"""`owl3 chat`: a conversation by lines of standard input, and what the keys and commands do."""

import io
import json
import re
import signal
import sys
import time
from pathlib import Path

import pytest

import owl3_jax
from owl3_jax.cli.conversation import COMMANDS, Conversation
from owl3_jax.host import progress
from owl3_jax.inference import programs
from owl3_jax.inference.sampling import Sampling
from tests.e2e.tools import make_checkpoint, run, run_here, save_photos
from tests.unit.inference.tiny_engine import memory_running_out
from tests.videos import write_video

SAMPLING = Sampling(max_new_tokens=6, repetition_penalty=1.5)
OPTIONS = ("--sampling", "greedy", "--max-new-tokens", 6, "--repetition-penalty", 1.5, "--no-crop")
QUESTION = "Which digit is red?"


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("place")
    make_checkpoint(place / "checkpoint")
    save_photos(place)
    write_video(place / "film.mp4", 30)
    return place


@pytest.fixture(scope="module")
def owl(place) -> owl3_jax.Owl3Checkpoint:
    return owl3_jax.from_pretrained(place / "checkpoint")


def test_a_conversation_by_standard_input(place, owl, tmp_path):
    photo = place / "flower with blank.png"
    lines = [f'/image "{photo}"', QUESTION, "/image missing.jpg", "", "/nope", "How many?"]
    lines += [f"/save {tmp_path}/a.json", "/reset"]
    done = run("chat", "--checkpoint", place / "checkpoint", *OPTIONS, stdin="\n".join([*lines, QUESTION]))
    assert done.returncode == 0, done.stderr
    session = owl.session()
    answers = [session.ask(QUESTION, [photo], crop=False, sampling=SAMPLING), session.ask("How many?", sampling=SAMPLING)]
    assert done.stdout.splitlines() == [
        "flower with blank.png: 640 x 427",
        answers[0],
        "error: cannot read image missing.jpg: No such file or directory: missing.jpg",
        "error: unknown command /nope; /help lists all",
        answers[1],
        f"4 messages in {tmp_path}/a.json",
        "a new conversation",
        owl.session().ask(QUESTION, sampling=SAMPLING),
    ]
    saved = json.loads((tmp_path / "a.json").read_text())
    assert saved == {"messages": list(session.messages), "images": [str(photo)], "videos": []}


def test_control_c_ends_an_answer_and_keeps_the_conversation(owl, monkeypatch, capsys):
    whole = owl.session().ask(QUESTION, sampling=SAMPLING)

    class Interrupting(io.StringIO):
        """Presses Ctrl-C when it has shown two pieces."""

        pieces = 0

        def write(self, text: str) -> int:
            self.pieces += 1
            if self.pieces == 2:
                signal.raise_signal(signal.SIGINT)
            return super().write(text)

    conversation = Conversation(owl, SAMPLING)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", Interrupting())
        conversation.take(QUESTION)
        shown = sys.stdout.getvalue()
    assert shown.strip() and whole.startswith(shown.strip()) and len(shown) < len(whole)
    assert not conversation.is_over
    conversation.take("How many?")
    expected = owl.processor.prepare(
        [
            {"role": "user", "content": QUESTION},
            {"role": "assistant", "content": shown[: -len("\n")]},
            {"role": "user", "content": "How many?"},
        ]
    )
    assert capsys.readouterr().out.strip() == owl.engine.generate([expected], SAMPLING)[0][0].text.strip()


def test_a_terminal_is_told_rate_and_media_in_dim(owl, place, monkeypatch, capsys):
    conversation = Conversation(owl, SAMPLING)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    conversation.take(f"/video {place / 'film.mp4'}")
    conversation.take(QUESTION)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "film.mp4: 3 frames"
    assert printed[-1].startswith("\033[2m") and printed[-1].endswith("s · images 0, videos 1\033[0m")
    assert " tokens/s · first after " in printed[-1]


def test_failures_leave_the_conversation_as_it_was(owl, place, tmp_path, capsys):
    conversation = Conversation(owl, SAMPLING)
    (tmp_path / "torn.mp4").write_bytes((place / "film.mp4").read_bytes()[:700])
    conversation.take(f"/image {place / 'china.jpg'}")
    wrong = ("/save", "/quit now", f"/save {place}", "/image ~no_such_user/cat.jpg", "a \ud800", "<|video|> which?")
    for line in (f"/video {tmp_path / 'torn.mp4'}", *wrong):
        conversation.take(line)
    *_, last = printed = capsys.readouterr().out.splitlines()
    assert [line.startswith("error: ") for line in printed] == [False] + [True] * 7
    assert "write ./~ for a file" in printed[5]
    assert "torn.mp4" in printed[1] and printed[2:4] == ["error: /save takes a path", "error: /quit takes no argument"]
    assert last.endswith("; the question and its attachments were dropped")
    conversation.take(QUESTION)
    assert capsys.readouterr().out.strip() == owl.session().ask(QUESTION, sampling=SAMPLING).strip()


def test_a_conversation_survives_that_memory_runs_out(owl, place, capsys):
    conversation = Conversation(owl, SAMPLING)
    conversation.take("How many?")
    conversation.take(f"/image {place / 'china.jpg'}")
    capsys.readouterr()
    with memory_running_out(programs.decode, at_call=3):
        conversation.take(QUESTION)
    answer, error = capsys.readouterr().out.splitlines()
    assert len(answer.split()) == 3
    assert error.startswith("error: memory ran out (RESOURCE_EXHAUSTED: ") and error.endswith("its attachments were dropped")
    assert len(owl.runtime.feature_cache) == 0, "features may be what was not computed"
    conversation.take(QUESTION)
    session = owl.session()
    session.ask("How many?", sampling=SAMPLING)
    assert capsys.readouterr().out.strip() == session.ask(QUESTION, sampling=SAMPLING).strip()


def test_control_c_while_images_are_read_forgets_the_question(owl, place, monkeypatch, capsys):
    conversation, run_model = Conversation(owl, SAMPLING), type(owl.runtime).run_model

    def press_and_store(self, program, *arguments, **options):
        if program is programs.store:
            signal.raise_signal(signal.SIGINT)
        return run_model(self, program, *arguments, **options)

    conversation.take(f"/image {place / 'china.jpg'}")
    with monkeypatch.context() as patch:
        patch.setattr(type(owl.runtime), "run_model", press_and_store)
        conversation.take(QUESTION)
    assert capsys.readouterr().out.splitlines()[-1].startswith("error: stopped while images were read; the question and its")
    conversation.take(QUESTION)
    assert capsys.readouterr().out.strip() == owl.session().ask(QUESTION, sampling=SAMPLING).strip()
    assert not conversation.is_over


def test_a_terminal_shows_how_many_images_are_read(owl, place, monkeypatch, capsys):
    conversation = Conversation(owl, SAMPLING)
    conversation.take(f"/video {place / 'film.mp4'}")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(progress, "_SECONDS_UNSEEN", 0.0)
    run_model = type(owl.runtime).run_model
    slowly = lambda *arguments, **options: (time.sleep(0.1), run_model(*arguments, **options))[1]
    monkeypatch.setattr(type(owl.runtime), "run_model", slowly)
    conversation.take(QUESTION)
    shown = capsys.readouterr().err
    assert re.search(r"\rreading images:  67%.* 2/3 \[", shown) and shown.endswith("\r")


def test_images_and_videos_stand_in_the_order_they_were_attached(owl, place, tmp_path, capsys):
    conversation = Conversation(owl, SAMPLING)
    for line in (f"/video {place / 'film.mp4'}", f"/image {place / 'china.jpg'}", QUESTION, f"/save {tmp_path}/a.json"):
        conversation.take(line)
    saved = json.loads((tmp_path / "a.json").read_text())
    assert saved["messages"][0]["content"] == f"<|video|>\n<|image|>\n{QUESTION}"
    assert (saved["images"], saved["videos"]) == ([str(place / "china.jpg")], [str(place / "film.mp4")])


def test_help_names_every_command_and_quit_leaves(owl, capsys):
    conversation = Conversation(owl, SAMPLING)
    conversation.take("/help")
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(COMMANDS)
    assert not conversation.is_over
    conversation.take("/quit")
    assert conversation.is_over


@pytest.mark.parametrize("argv", [("--n", 2), ("--sampling", "beam"), ("--logprobs",)])
def test_one_answer_is_streamed(place, capsys, argv):
    assert run_here("chat", "--checkpoint", place / "checkpoint", *argv) == 2
    assert "n and num_beams must be 1" in capsys.readouterr().err


def test_a_directory_without_a_checkpoint_is_an_error(tmp_path):
    assert str(run_here("chat", "--checkpoint", tmp_path)).startswith(f"error: {tmp_path}")


def test_control_c_at_the_prompt_goes_on_and_control_d_leaves(place, owl, monkeypatch, capsys):
    keys = iter([KeyboardInterrupt(), QUESTION, EOFError()])

    def press(prompt: str) -> str:
        key = next(keys)
        if isinstance(key, BaseException):
            raise key
        return key

    monkeypatch.setattr("builtins.input", press)
    assert run_here("chat", "--checkpoint", place / "checkpoint", *OPTIONS) == 0
    hint, answer = capsys.readouterr().out.strip().splitlines()
    assert hint == "Ctrl-D or /quit leaves" and answer.strip() == owl.session().ask(QUESTION, sampling=SAMPLING).strip()
    assert next(keys, None) is None
