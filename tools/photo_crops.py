"""64 crops of real photographs with captions, as training files in the forms that people have.

The photographs ship with scikit-learn (a temple, a flower) and matplotlib (Grace Hopper).
"""

import dataclasses
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import av
import matplotlib as mpl
import numpy as np
import tokenizers
from PIL import Image, ImageColor
from sklearn.datasets import load_sample_images
from tokenizers import trainers

from owl3_jax.processing.chat import MARKERS
from owl3_jax.processing.tokenizer_files import byte_level_bpe

ASKED = "Describe the image."
CLIP_FPS = 4

_GRIDS = {"temple": (6, 4), "flower": (6, 4), "admiral": (4, 4)}  # columns and rows of crops
_COLOURS = ("black", "gray", "white", "brown", "olive", "green", "navy", "blue", "skyblue", "red", "crimson", "orange", "pink")
_LEARNED_TOKENS = 400  # of the tokenizer, beside the marks of the chat layout


@dataclasses.dataclass(frozen=True)
class Crop:
    """A part of a photograph."""

    subject: str
    column: int
    row: int
    image: Image.Image

    @property
    def file(self) -> str:
        """Its file's name."""
        return f"{self.subject}-{self.row}-{self.column}.jpg"

    @property
    def colour(self) -> str:
        """The name of the colour that its mean is nearest to."""
        mean = np.asarray(self.image, np.float64).mean(axis=(0, 1))
        distance = lambda name: float(np.square(mean - ImageColor.getrgb(name)).sum())
        return min(_COLOURS, key=distance)

    @property
    def caption(self) -> str:
        """Says which crop it is, so that no two are the same."""
        return f"Row {self.row}, column {self.column} of the {self.subject}, mostly {self.colour}."


def crops() -> list[Crop]:
    """All 64, as RGB."""
    temple, flower = (Image.fromarray(pixels) for pixels in load_sample_images().images)
    with Image.open(Path(mpl.get_data_path()) / "sample_data" / "grace_hopper.jpg") as photograph:
        admiral = photograph.convert("RGB")
    return [
        crop
        for subject, image in {"temple": temple, "flower": flower, "admiral": admiral}.items()
        for crop in _cut(subject, image)
    ]


def _cut(subject: str, image: Image.Image) -> Iterator[Crop]:
    columns, rows = _GRIDS[subject]
    width, height = image.width / columns, image.height / rows
    for row in range(rows):
        for column in range(columns):
            box = (round(column * width), round(row * height), round((column + 1) * width), round((row + 1) * height))
            yield Crop(subject, column + 1, row + 1, image.crop(box))


def write_sources(folder: Path, seed: int = 0) -> dict[str, list[str]]:
    """Writes crops, clips and files of conversations; returns each stage's sources, as `--config.data.sources` takes them."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn, parts = random.Random(seed), crops()
    for crop in parts:
        crop.image.save(folder / crop.file, quality=95)
    captions = [_llava(number, crop) for number, crop in enumerate(parts)]
    (folder / "captions.json").write_text(json.dumps(captions, indent=1))
    several = [_several(drawn.sample(parts, count)) for count in (2, 3, 4) for _ in range(64)]
    _write_lines(folder / "several.jsonl", several)
    _write_lines(folder / "questions.jsonl", [_question(crop) for crop in parts])
    clips = [_clip(folder, subject, number, drawn, parts) for subject in _GRIDS for number in range(4)]
    _write_lines(folder / "clips.jsonl", clips)
    path = lambda name, weight: f"{folder / name}:{weight:g}"
    return {
        "1": [str(folder / "captions.json")],
        "2": [path("captions.json", 0.5), path("several.jsonl", 0.5)],
        "3": [path("captions.json", 0.6), path("several.jsonl", 0.2), path("questions.jsonl", 0.1), path("clips.jsonl", 0.1)],
    }


def make_tokenizer() -> tokenizers.Tokenizer:
    """A byte-level BPE like Qwen2's, learned from the captions; as there, `<|image|>` is ordinary text."""
    texts = [ASKED, _ASKED_SEVERAL, *_ROLES, *(text for crop in crops() for text in (crop.caption, *_asked_and_answered(crop)))]
    tokenizer = byte_level_bpe({}, [], [])
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(
        texts * 2, trainers.BpeTrainer(vocab_size=_LEARNED_TOKENS, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer.add_special_tokens(list(MARKERS))
    return tokenizer


_ROLES = ("system", "user", "assistant")
_ASKED_SEVERAL = "Describe each image in a line."


def _llava(number: int, crop: Crop) -> dict[str, object]:
    turns = [{"from": "human", "value": f"<image>\n{ASKED}"}, {"from": "gpt", "value": crop.caption}]
    return {"id": f"{number:03}", "image": crop.file, "conversations": turns}


def _several(chosen: Sequence[Crop]) -> dict[str, object]:
    asked = "<image>" * len(chosen) + f"\n{_ASKED_SEVERAL}"
    return _swift(asked, "\n".join(crop.caption for crop in chosen), images=[crop.file for crop in chosen])


def _asked_and_answered(crop: Crop) -> tuple[str, str]:
    return f"Which colour is row {crop.row}, column {crop.column} of the {crop.subject}?", f"Mostly {crop.colour}."


def _question(crop: Crop) -> dict[str, object]:
    return _swift(*_asked_and_answered(crop))


def _clip(folder: Path, subject: str, number: int, drawn: random.Random, parts: Sequence[Crop]) -> dict[str, object]:
    """A clip of two seconds: two parts of a photograph, one after the other."""
    chosen = drawn.sample([crop for crop in parts if crop.subject == subject], 2)
    name = f"{subject}-{number}.mp4"
    frames = [np.asarray(crop.image.resize((96, 96))) for crop in chosen for _ in range(CLIP_FPS)]
    with av.open(str(folder / name), "w") as container:
        stream = container.add_stream("libx264", rate=CLIP_FPS)
        stream.width, stream.height, stream.pix_fmt = 96, 96, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return _swift("<video>\nWhat does the video show?", f"The {subject}.", videos=[name])


def _swift(asked: str, answer: str, **media: Sequence[str]) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}], **media}


def _write_lines(path: Path, records: Sequence[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
