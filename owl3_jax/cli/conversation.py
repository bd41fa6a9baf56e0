"""The lines of a terminal conversation: questions and commands, on a session that keeps its caches."""

import contextlib
import json
import sys
import time
from collections.abc import Generator, Sequence
from pathlib import Path

from owl3_jax import Owl3Checkpoint
from owl3_jax.cli.typed_path import typed_path
from owl3_jax.host.files import write_text
from owl3_jax.host.progress import reading_images
from owl3_jax.host.signals import StopSignal
from owl3_jax.inference.memory import FAILURES
from owl3_jax.inference.sampling import Sampling
from owl3_jax.processing.chat import IMAGE, VIDEO, Chunk, with_placeholders
from owl3_jax.processing.images import load_image
from owl3_jax.processing.video import open_video

COMMANDS = {
    "/image": "PATH  attach an image to the next question",
    "/video": "PATH  attach a video file, or a folder of frames",
    "/save": "PATH   write the conversation so far, as a line for `owl3 generate --jsonl`",
    "/reset": "       start over",
    "/help": "        list the commands",
    "/quit": "        leave",
}
PATH_COMMANDS = ("/image", "/video", "/save")

Medium = tuple[str, Path]  # its placeholder, and the file or folder

_DIM = "\033[2m{}\033[0m"


class Conversation:
    """Takes lines, prints answers and the outcome of commands."""

    def __init__(self, owl: Owl3Checkpoint, sampling: Sampling) -> None:
        self.is_over = False
        self._owl, self._sampling = owl, sampling
        self._begin()

    def _begin(self) -> None:
        self._session = self._owl.session()
        self._media: list[Medium] = []  # of all questions, in order
        self._new_media: list[Medium] = []  # of the next question

    def take(self, line: str) -> None:
        """Answers a question or follows a command. Failures are printed; the conversation continues."""
        try:
            if line.startswith("/"):
                self._follow(*line.split(maxsplit=1))
            elif line:
                self._answer(line)
        except FAILURES as error:
            lost = "" if line.startswith("/") else "; the question and its attachments were dropped"
            print(f"error: {error}{lost}", flush=True)

    def _follow(self, command: str, argument: str = "") -> None:
        if command not in COMMANDS:
            raise ValueError(f"unknown command {command}; /help lists all")
        if (command in PATH_COMMANDS) != bool(argument):
            raise ValueError(f"{command} takes {'a path' if command in PATH_COMMANDS else 'no argument'}")
        if command in PATH_COMMANDS:
            follow = {"/image": self._attach_image, "/video": self._attach_video, "/save": self._save}[command]
            follow(typed_path(argument))
        elif command == "/reset":
            self._begin()
            print("a new conversation")
        elif command == "/help":
            print("\n".join(f"{name} {text}" for name, text in COMMANDS.items()))
        else:
            self.is_over = True

    def _attach_image(self, path: Path) -> None:
        image = load_image(path, str(path))
        self._new_media.append((IMAGE, path))
        print(f"{path.name}: {image.width} x {image.height}")

    def _attach_video(self, path: Path) -> None:
        """Attaches a video whose chosen frames can all be decoded: damage found later would spoil the question."""
        frames = sum(1 for _ in open_video(path, self._owl.processor.video_sampling, str(path)).frames())
        self._new_media.append((VIDEO, path))
        print(f"{path.name}: {frames} frames")

    def _save(self, path: Path) -> None:
        media = {"images": IMAGE, "videos": VIDEO}
        paths = {name: [str(path.resolve()) for path in _paths(each, self._media)] for name, each in media.items()}
        write_text(path, json.dumps({"messages": self._session.messages, **paths}, ensure_ascii=False) + "\n")
        print(f"{len(self._session.messages)} messages in {path}")

    def _answer(self, question: str) -> None:
        media, self._new_media = self._new_media, []
        with StopSignal() as stop:
            try:
                self._print_answer(question, media, stop)
            finally:
                self.is_over = stop.received == "SIGTERM"

    def _print_answer(self, question: str, media: Sequence[Medium], stop: StopSignal) -> None:
        start, times, pieces = time.perf_counter(), [], []
        try:
            with contextlib.closing(self._stream(question, media, stop)) as stream:
                for piece in stream:
                    times.append(time.perf_counter() - start)
                    pieces.append(piece)
                    print(piece, end="", flush=True)
                    if stop.received:
                        break
        except FAILURES:
            print(end="\n" if pieces else "")
            raise
        print(flush=True)
        self._media += media
        if sys.stdout.isatty():
            print(_DIM.format(self._status("".join(pieces), times)))

    def _stream(self, question: str, media: Sequence[Medium], stop: StopSignal) -> Generator[str]:
        """The pieces of the answer. Raises ValueError when a signal comes before all images are read."""

        def advance(images: int, total: int) -> None:
            bar.advance(images, total)
            if stop.received:
                raise ValueError("stopped while images were read")

        with reading_images() as bar:
            images, videos = _paths(IMAGE, media), _paths(VIDEO, media)
            placed = with_placeholders(question, [placeholder for placeholder, _ in media])
            yield from self._session.stream(placed, images, videos, sampling=self._sampling, advance=advance)

    def _status(self, answer: str, times: list[float]) -> str:
        """Tokens of the answer, their rate after the first one, and what was read. `times` of the pieces, seconds."""
        tokens = len(self._owl.processor.tokenizer.encode([Chunk(answer)]).input_ids) if answer else 0
        rate = f" · {(tokens - 1) / (times[-1] - times[0]):.1f} tokens/s" if len(times) > 1 else ""
        media = f"images {len(_paths(IMAGE, self._media))}, videos {len(_paths(VIDEO, self._media))}"
        return f"{tokens} tokens{rate} · first after {times[0]:.1f} s · {media}" if times else f"no answer · {media}"


def _paths(placeholder: str, media: Sequence[Medium]) -> list[Path]:
    return [path for each, path in media if each == placeholder]
