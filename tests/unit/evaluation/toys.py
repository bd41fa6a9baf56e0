"""What the tests of evaluation share: a task that has nothing to do with digits, and an engine that answers by a rule."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from unittest import mock

from matplotlib.figure import Figure
from PIL import Image

from owl3_jax.config import Config, EvalConfig, ModelConfig, VisionConfig
from owl3_jax.data.digits.tokenizer import make_tokenizer
from owl3_jax.evaluation.contact_sheet import Card
from owl3_jax.evaluation.task import Prompt, Scored, Summary
from owl3_jax.inference.answers import Answer
from owl3_jax.inference.engine import Engine
from owl3_jax.inference.prompt_sizes import BatchSize
from owl3_jax.inference.sampling import Sampling
from owl3_jax.processing.images import ImageSource
from owl3_jax.processing.processor import Prepared, Processor

PROCESSOR = Processor(make_tokenizer(), image_size=8)
VISION = VisionConfig(hidden_size=8, intermediate_size=8, num_attention_heads=2, image_size=8, patch_size=2)
EVAL = EvalConfig(images_per_batch=24, batch_shapes=3, max_new_tokens=5, tasks=("counting",))
CONFIG = Config(model=ModelConfig(vision=VISION), eval=EVAL)


@dataclasses.dataclass(frozen=True)
class Counting:
    """A `Task`: how many images are there? Each question has one image file several times."""

    counts: Sequence[int]
    image: ImageSource
    name: str = "counting"

    def prompts(self) -> Iterator[Prompt[int]]:
        for number, count in enumerate(self.counts):
            messages = [{"role": "user", "content": "<|image|>" * count + "\nHow many images?"}]
            yield Prompt(str(number), messages, count, [self.image] * count)

    def score(self, question: int, answer: str) -> bool:
        return answer == str(question)

    def summarize(self, scored: Sequence[Scored[int, bool]]) -> Summary:
        right = sum(each.score for each in scored)
        return Summary({self.name: {"right": right}}, f"{right} of {len(scored)}", {"counting.png": Figure()})

    def showcase(self) -> list[list[Prompt[int]]]:
        return [list(self.prompts())]

    def card(self, prompt: Prompt[int], answer: str) -> Card:
        images = [Image.new("RGB", (8, 8))] * prompt.question
        expected = str(prompt.question)
        return Card("count", images, ["grey"] * len(images), None, "How many?", answer, expected, answer == expected, {})


class Answering:
    """An engine whose answer to a prompt is a rule's; it notes what it is asked."""

    def __init__(self, rule: Callable[[Prepared], str], rows_divisor: int = 1, stop_after: int | None = None) -> None:
        self.batches: list[tuple[int, BatchSize]] = []  # prompts of each batch, and what it is padded to
        self.engine = mock.create_autospec(Engine, instance=True)
        self.engine.runtime = mock.Mock(**{"rows.side_effect": lambda prompts: -(-prompts // rows_divisor) * rows_divisor})
        self.engine.generate.side_effect = self._generate
        self._rule, self._stop_after = rule, stop_after

    def load(self, processor: Processor | None = None) -> Engine:
        return self.engine

    @property
    def prompts(self) -> int:
        return sum(prompts for prompts, _ in self.batches)

    def _generate(self, prompts: Sequence[Prepared], samplings: Sequence[Sampling], *, size: BatchSize) -> list[list[Answer]]:
        if len(self.batches) == self._stop_after:
            raise KeyboardInterrupt
        for prompt in prompts:
            list(prompt.views())
        self.batches.append((len(prompts), size))
        return [[Answer(self._rule(prompt), (1,), "stop")] for prompt in prompts]


def count_images(prompt: Prepared) -> str:
    return str(prompt.num_images)


def save_image(path: Path, level: int = 128) -> Path:
    Image.new("RGB", (8, 8), (level,) * 3).save(path)
    return path


def make_workdir(path: Path) -> Path:
    """One with what an evaluation looks at before it loads the model."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "model.safetensors").write_bytes(b"weights")
    PROCESSOR.save(path)
    return path
