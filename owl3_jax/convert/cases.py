"""Parity cases: a .npz file of prompts and images, and the outputs of another implementation for them.

Keys are `NAME/input_ids` [T], `NAME/media_starts` [I] and `NAME/pixel_values` [I, 3, S, S] (absent without images), and the
outputs `image_embeds` [I, L, E], `hidden_states` [N + 1, T, E], `logits` [T, V] and `greedy` [A], each of them optional.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int32, Shaped

from owl3_jax.batch import AnyArray, Batch
from owl3_jax.config import ModelConfig
from owl3_jax.host.files import write_atomically
from owl3_jax.host.foreign import foreign_errors

OUTPUTS = ("image_embeds", "hidden_states", "logits", "greedy")
Outputs = dict[str, Shaped[np.ndarray, "..."]]  # by names of OUTPUTS


class UnreadableCases(ValueError):
    """A file of cases that cannot be used; the message names the array."""


class Case(NamedTuple):
    """One prompt and what is expected of it."""

    name: str
    input_ids: Int32[np.ndarray, " T"]
    image_starts: Int32[np.ndarray, " I"]
    pixel_values: Float32[np.ndarray, "I S S 3"]  # normalised to [-1, 1]
    expected: Outputs  # those that the file has


def read_cases(path: Path, image_size: int) -> list[Case]:
    """The cases of a .npz file in the order of their names; `image_size` is S for those without images.

    Raises UnreadableCases when the file cannot be read or holds no case. `check_cases` compares them with a model.
    """
    arrays = _read_arrays(path)
    names = sorted(key.removesuffix("/input_ids") for key in arrays if key.endswith("/input_ids"))
    if not names:
        raise UnreadableCases(f"{path} holds no case: no array is called NAME/input_ids; it has {', '.join(sorted(arrays))}")
    return [_case(arrays, name, image_size) for name in names]


def check_cases(cases: Iterable[Case], config: ModelConfig) -> None:
    """Raises UnreadableCases for a case that is not one of this model; the message names the case and the array."""
    for case in cases:
        for array, problem in _problems(case, config):
            raise UnreadableCases(f"{case.name}/{array}: {problem}")


def _problems(case: Case, config: ModelConfig) -> Iterator[tuple[str, str]]:
    """Arrays of a case that do not fit, and why."""
    S, T, I = config.vision.image_size, len(case.input_ids), len(case.image_starts)
    if case.input_ids.ndim != 1 or not T:
        yield "input_ids", f"shape {case.input_ids.shape}; it must be [T], with at least one token"
    elif not 0 <= case.input_ids.min() <= case.input_ids.max() < config.vocab_size:
        yield "input_ids", f"token {case.input_ids.max()}; the model's vocabulary has {config.vocab_size}"
    elif config.max_position_embeddings < T:
        yield "input_ids", f"{T} tokens; the model has {config.max_position_embeddings} positions"
    if case.pixel_values.shape != (I, S, S, 3):
        shape = [case.pixel_values.shape[axis] for axis in (0, 3, 1, 2)]
        yield "pixel_values", f"shape {shape}; it must be {[I, 3, S, S]} for this model and {I} media_starts"
    starts = case.image_starts
    if I and not (starts.min() >= 0 and starts.max() < T and (np.diff(starts) > 0).all()):
        yield "media_starts", f"{starts.tolist()}; they must ascend, within the {T} tokens"


def _read_arrays(path: Path) -> dict[str, Shaped[np.ndarray, "..."]]:
    if not path.is_file():
        raise UnreadableCases(f"there is no file {path}")
    with foreign_errors(UnreadableCases, f"{path} is not a readable .npz file"):  # pickled objects are refused by numpy
        file = np.load(path)
        if isinstance(file, np.ndarray):
            raise UnreadableCases(f"{path} holds one array; cases are several in a .npz file, see owl3_jax.convert.cases")
        with file:
            return dict(file)


def _case(arrays: dict[str, Shaped[np.ndarray, "..."]], name: str, image_size: int) -> Case:
    no_images = np.zeros((0, 3, image_size, image_size), np.float32)
    pixels = arrays.get(f"{name}/pixel_values", no_images)
    if pixels.ndim != 4:
        raise UnreadableCases(f"{name}/pixel_values: shape {pixels.shape}; it must be [I, 3, S, S]")
    return Case(
        name,
        arrays[f"{name}/input_ids"].astype(np.int32),
        arrays.get(f"{name}/media_starts", no_images[:, 0, 0, 0]).astype(np.int32),
        pixels.transpose(0, 2, 3, 1).astype(np.float32),
        {output: arrays[f"{name}/{output}"] for output in OUTPUTS if f"{name}/{output}" in arrays},
    )


def write_cases(path: Path, cases: Iterable[Case]) -> None:
    """Writes a file that `read_cases` reads; it appears when all of it is written."""
    arrays: dict[str, AnyArray] = {}
    for case in cases:
        arrays |= {f"{case.name}/input_ids": case.input_ids, f"{case.name}/media_starts": case.image_starts}
        if len(case.image_starts):
            arrays[f"{case.name}/pixel_values"] = case.pixel_values.transpose(0, 3, 1, 2)
        arrays |= {f"{case.name}/{output}": value for output, value in case.expected.items()}
    write_atomically(path, lambda file: np.savez(file, **arrays))


def pad_cases(cases: Sequence[Case], *, tokens: int | None = None, images: int | None = None) -> Batch:
    """One case a row, padded on the right to `tokens` and `images` (default: the most that a case has)."""
    tokens = tokens or max(len(case.input_ids) for case in cases)
    images = max(len(case.image_starts) for case in cases) if images is None else images
    ids = np.zeros((3, len(cases), tokens), np.int32)
    image_ids = np.zeros((2, len(cases), images), np.int32)
    pixels = np.zeros((len(cases), images, *cases[0].pixel_values.shape[1:]), np.float32)
    for row, case in enumerate(cases):
        T, I = len(case.input_ids), len(case.image_starts)
        ids[:, row, :T] = case.input_ids, np.arange(T), np.ones(T)
        image_ids[:, row, :I] = case.image_starts, np.ones(I)
        pixels[row, :I] = case.pixel_values
    return Batch(ids[0], ids[1], ids[2], pixels, image_ids[0], image_ids[1])
