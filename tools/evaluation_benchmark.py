"""Evaluation beside a loop that asks one question at a time, and several numbers of frames beside the largest alone."""

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from PIL import Image

import owl3_jax
from owl3_jax.config import EvalConfig
from owl3_jax.data.digits.images import digit_image
from owl3_jax.evaluation.answering import answer_questions
from owl3_jax.evaluation.asked import Asked, Selection, ask_all
from owl3_jax.evaluation.data_root import DataRoot
from owl3_jax.evaluation.tasks import choose
from owl3_jax.evaluation.tasks.digits_prompts import held_out_ids, open_picture, picture_name

FRAMES = (4, 8, 16, 32, 64)
_WIDTH, _HEIGHT = 320, 240  # of a frame


class Measured(NamedTuple):
    """Medians, in seconds."""

    questions: int
    one_by_one: float
    batched: float
    differing: int  # answers that are not the same
    clips: int
    largest: float
    sweep: float


def measure(checkpoint: str, questions: int, clips: int, repeats: int) -> Measured:
    """Both comparisons on one checkpoint; everything is compiled in a first round that is not counted."""
    with tempfile.TemporaryDirectory() as folder:
        data = DataRoot(folder, EvalConfig(questions=questions, exact_match_images=(1, 2, 4, 8), feature_cache_gb=0.0))
        asked = ask_all(choose(["digits_exact"]).tasks.values(), data, Selection(limit=questions))
        owl = owl3_jax.from_pretrained(checkpoint, dtype="float32", vision_batch_size=256, feature_cache_bytes=0)
        loop = _timed(lambda: [_ask_alone(owl, each) for each in asked], repeats)
        batched = _timed(lambda: _answers(owl, asked, data), repeats)
        differing = sum(one != other for one, other in zip(loop[1], batched[1], strict=True))
        write_clips(Path(folder), clips)
        sweep = owl3_jax.from_pretrained(checkpoint, dtype="float32", vision_batch_size=64)
        alone = _timed(lambda: _sweep(sweep, folder, FRAMES[-1:]), repeats)
        together = _timed(lambda: _sweep(sweep, folder, FRAMES), repeats)
        return Measured(len(asked), loop[0], batched[0], differing, clips, alone[0], together[0])


def describe(measured: Measured) -> str:
    """What is printed."""
    rates = [measured.questions / seconds for seconds in (measured.one_by_one, measured.batched)]
    return (
        f"{measured.questions} questions one by one {rates[0]:.1f}/s, batched {rates[1]:.1f}/s: "
        f"{rates[1] / rates[0]:.1f} times; {measured.differing} answers differ\n"
        f"{measured.clips} clips of {_WIDTH}x{_HEIGHT} with {FRAMES[-1]} frames {measured.largest:.1f} s, "
        f"with each of {', '.join(map(str, FRAMES))} "
        f"{measured.sweep:.1f} s: {measured.sweep / measured.largest:.2f} times"
    )


def write_clips(folder: Path, clips: int) -> None:
    """Videos of digits, and questions about them, in a JSON Lines file."""
    rng = np.random.default_rng(0)
    lines = []
    for clip in range(clips):
        with av.open(str(folder / f"{clip}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=Fraction(8))
            stream.width, stream.height, stream.pix_fmt = _WIDTH, _HEIGHT, "yuv420p"
            for _ in range(FRAMES[-1]):
                name = picture_name(digit_image(int(rng.choice(held_out_ids())), "red"))
                picture = open_picture(DataRoot(), name)
                assert isinstance(picture, Image.Image)
                container.mux(stream.encode(av.VideoFrame.from_image(picture.resize((_WIDTH, _HEIGHT)))))
            container.mux(stream.encode(None))
        lines.append(json.dumps({"video": f"{clip}.mp4", "question": "Which digit is red?", "answer": "red 7"}))
    (folder / "clips.jsonl").write_text("\n".join(lines))


def _sweep(owl: owl3_jax.Owl3Checkpoint, folder: str, frames: Sequence[int]) -> list[str]:
    owl.runtime.feature_cache.clear()
    data = DataRoot(folder, EvalConfig(frames=tuple(frames), max_new_tokens=8, crop=False))
    return _answers(owl, ask_all(choose([f"file:{folder}/clips.jsonl"], frames).tasks.values(), data, Selection()), data)


def _answers(owl: owl3_jax.Owl3Checkpoint, asked: Sequence[Asked], data: DataRoot) -> list[str]:
    with tempfile.TemporaryDirectory() as output:
        path = Path(output) / "answers.jsonl"
        records, _ = answer_questions(asked, data, path, owl.config, owl.processor, lambda: owl.engine)
    return [records[each.key]["answers"][0]["text"] for each in asked]


def _ask_alone(owl: owl3_jax.Owl3Checkpoint, asked: Asked) -> str:
    images = [open_picture(DataRoot(), name) for name in asked.question.images]
    answer = owl.generate(asked.question.text, images, max_new_tokens=asked.task.max_new_tokens)
    assert isinstance(answer, str)
    return answer


def _timed(run: Callable[[], list[str]], repeats: int) -> tuple[float, list[str]]:
    """The median of several runs after one that is not counted, and what the last one gave."""
    seconds, answers = [], run()
    for _ in range(repeats):
        start = time.monotonic()
        answers = run()
        seconds.append(time.monotonic() - start)
    return statistics.median(seconds), answers
