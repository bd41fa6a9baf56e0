"""What the tests of evaluation share: a task that has nothing to do with digits, and an engine that answers by a rule."""

from collections.abc import Callable, Sequence
from pathlib import Path
from unittest import mock

from PIL import Image

from owl3_jax.config import EvalConfig, ModelConfig, VisionConfig
from owl3_jax.data.digits.tokenizer import make_tokenizer
from owl3_jax.evaluation.data_root import DataRoot
from owl3_jax.evaluation.question import Judged, Question
from owl3_jax.evaluation.task import About, Task
from owl3_jax.inference.answers import Answer
from owl3_jax.inference.clock import Clock
from owl3_jax.inference.engine import Engine
from owl3_jax.inference.prompt_sizes import BatchSize
from owl3_jax.inference.sampling import Sampling
from owl3_jax.processing.processor import Prepared, Processor

PROCESSOR = Processor(make_tokenizer(), image_size=8)
VISION = VisionConfig(hidden_size=8, intermediate_size=8, num_attention_heads=2, image_size=8, patch_size=2)
EVAL = EvalConfig(images_per_batch=24, batch_shapes=3, max_new_tokens=5)
MODEL = ModelConfig(vision=VISION)


def counting(counts: Sequence[int], image: Path, name: str = "counting") -> Task:
    """How many images are there? Each question has one image file several times."""

    def questions(data: DataRoot) -> list[Question]:
        return [
            Question(
                str(number), "<|image|>" * count + "\nHow many images?", str(count), (str(image),) * count, split=f"{count}"
            )
            for number, count in enumerate(counts)
        ]

    def judge(question: Question, answer: str) -> Judged:
        right = float(answer == question.gold)
        return Judged(right, right, answer, answer)

    return Task(name, About("How many images?"), questions, judge, crop=None)


class Answering:
    """An engine whose answer to a prompt is a rule's; it notes what it is asked."""

    def __init__(self, rule: Callable[[Prepared], str], rows_divisor: int = 1, stop_after: int | None = None) -> None:
        self.batches: list[tuple[int, BatchSize]] = []  # prompts of each batch, and what it is padded to
        self.engine = mock.create_autospec(Engine, instance=True)
        rows = lambda prompts: -(-prompts // rows_divisor) * rows_divisor
        self.engine.runtime = mock.Mock(**{"rows.side_effect": rows}, config=MODEL, clock=Clock())
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
