"""Sampling settings, which validate themselves: by name, by option, or from a checkpoint's generation_config.json."""

import dataclasses
import difflib
import json
import reprlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_origin

from owl3_jax.config import ConfigError, Form

Value = Any  # Any: an option's value from JSON or a caller; `_checked` validates it against its field

_KINDS: dict[object, str] = {int: "a whole number", float: "a number", bool: "true or false", tuple[str, ...]: "a list"}
# The limits of temperature and penalties keep what is computed from them finite in float32.
_ALLOWED: dict[str, tuple[Callable[[Value], bool], str]] = {
    "max_new_tokens": (lambda value: 1 <= value < 2**31, " from 1 to 2**31 - 1"),
    "min_new_tokens": (lambda value: 0 <= value < 2**31, " from 0 to 2**31 - 1"),
    "temperature": (lambda value: value == 0 or 1e-3 <= value <= 1e3, ", 0 (greedy) or from 0.001 to 1000"),
    "top_k": (lambda value: 0 <= value < 2**31, " from 0 (off) to 2**31 - 1"),
    "top_p": (lambda value: 0 < value <= 1, " above 0 and at most 1 (off)"),
    "min_p": (lambda value: 0 <= value <= 1, " from 0 (off) to 1"),
    "repetition_penalty": (lambda value: 1e-3 <= value <= 1e3, " from 0.001 to 1000, 1 being off"),
    "seed": (lambda value: 0 <= value < 2**32, " from 0 to 2**32 - 1"),
    "n": (lambda value: value >= 1, " of at least 1"),
    "num_beams": (lambda value: value >= 1, " of at least 1"),
    "length_penalty": (lambda value: abs(value) <= 1e3, " from -1000 to 1000"),
    "stop": (lambda texts: all(isinstance(text, str) and text for text in texts), " of strings that are not empty"),
    "logprobs": (lambda _: True, ""),
}
_OWN_NAMES = {"stop_strings": "stop", "num_return_sequences": "n"}  # options that generation_config.json names differently


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the answers to one prompt are chosen. Raises ConfigError for values and combinations that cannot work.

    Temperature 0 and beam search are deterministic: `top_k`, `top_p`, `min_p` and `seed` then have no effect.
    """

    max_new_tokens: int = 256  # most tokens of an answer
    min_new_tokens: int = 0  # fewest tokens of an answer
    temperature: float = 0.0  # 0: always the most likely token
    top_k: int = 0  # draw from this many of the most likely tokens; 0: all
    top_p: float = 1.0  # draw from the smallest set of tokens with at least this total probability
    min_p: float = 0.0  # draw from tokens with at least this fraction of the highest probability
    repetition_penalty: float = 1.0  # divides positive logits of tokens in the prompt or the answer, multiplies negative ones
    seed: int = 0  # random seed
    n: int = 1  # answers to each prompt
    num_beams: int = 1  # beams; 1: no beam search
    length_penalty: float = 1.0  # beams are ranked by log-probability / length ** length_penalty
    stop: tuple[str, ...] = ()  # texts that end an answer and are not part of it
    logprobs: bool = False  # whether to return each token's log-probability

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _checked(field.name, getattr(self, field.name)))
        _require_possible(self)

    @classmethod
    def named(cls, name: str, form: Form | None = None) -> "Sampling":
        """The settings `NAMED[name]`, for a model with this form of hyper attention.

        Only the official code of 7B-240728 (gated) has the repetition penalties of "chat" and "beam"; the others have none.

        Raises ConfigError with all names when there are none.
        """
        if name not in NAMED:
            raise ConfigError(f"unknown sampling settings {name!r}; known settings: {', '.join(NAMED)}")
        return NAMED[name] if form == "gated" else dataclasses.replace(NAMED[name], repetition_penalty=1.0)

    @classmethod
    def from_generation_config(cls, path: str | Path, **overrides: Value) -> "Sampling":
        """The settings that a checkpoint suggests; the official code ignores them.

        Args:
            path: a generation_config.json or the directory that holds it. Keys that have no counterpart here are
                ignored; missing ones have the defaults of transformers, except `max_new_tokens`.
            overrides: options that replace the file's.

        Raises:
            FileNotFoundError: there is no such file.
            ConfigError: the file or an option is invalid; the message names the file and the key.
        """
        file = Path(path) / "generation_config.json" if Path(path).is_dir() else Path(path)
        try:
            suggested = cls().with_options(**_suggested_options(file.read_text(encoding="utf-8")))
        except ConfigError as error:
            raise ConfigError(f"{file}: {error}") from error
        return suggested.with_options(**overrides)

    def with_options(self, **options: Value) -> "Sampling":
        """These settings with some of them replaced, by keyword or from JSON.

        Integers may stand for floats, a list for `stop`, and numpy's and jax's scalars for Python's.

        Raises ConfigError for an unknown option, with the nearest known one, and for a value that cannot work.
        """
        names = [field.name for field in dataclasses.fields(self)]
        for name in options:
            if name not in names:
                nearest = difflib.get_close_matches(name, names, n=1)
                hint = f"did you mean {nearest[0]!r}?" if nearest else f"known options: {', '.join(names)}"
                raise ConfigError(f"unknown sampling option {reprlib.repr(name)}; {hint}")
        return dataclasses.replace(self, **{name: _checked(name, value) for name, value in options.items()})


def _checked(name: str, value: Value, key: str | None = None) -> Value:
    """The value as its field holds it; an error calls it `key`, by default `name`."""
    kind = Sampling.__dataclass_fields__[name].type
    if getattr(value, "ndim", None) == 0:  # a scalar of numpy or jax
        value = value.item()
    if kind is float and type(value) is int:
        value = float(value)
    elif isinstance(value, list):
        value = tuple(value)
    is_allowed, allowed = _ALLOWED[name]
    if type(value) is not (get_origin(kind) or kind) or not is_allowed(value):
        raise ConfigError(f"sampling option {key or name} must be {_KINDS[kind]}{allowed}, got {reprlib.repr(value)}")
    return value


def _require_possible(sampling: Sampling) -> None:
    """Raises ConfigError for settings that contradict each other."""
    beams, answers = sampling.num_beams, sampling.n
    if sampling.min_new_tokens > sampling.max_new_tokens:
        raise ConfigError(f"min_new_tokens {sampling.min_new_tokens} must not exceed max_new_tokens {sampling.max_new_tokens}")
    if beams > 1 and sampling.temperature > 0:
        raise ConfigError(
            f"beam search is deterministic: with num_beams {beams} temperature must be 0, got {sampling.temperature}"
        )
    if beams > 1 and answers > beams:
        raise ConfigError(f"n must be at most num_beams {beams}, got {answers}")
    if beams == 1 and answers > 1 and sampling.temperature == 0:
        raise ConfigError(f"n {answers} greedy answers would be the same: set a temperature above 0, or num_beams >= {answers}")


def _suggested_options(text: str) -> dict[str, Value]:
    """Options that the text of a generation_config.json sets."""
    try:
        tree = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"invalid JSON: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"must hold a JSON object, got {type(tree).__name__}")
    draws = tree.get("do_sample") or False
    if not isinstance(draws, bool):
        raise ConfigError(f"do_sample must be true or false, got {draws!r}")
    names = {name: name for name in Sampling.__dataclass_fields__} | _OWN_NAMES
    options = {name: _checked(name, tree[key], key) for key, name in names.items() if tree.get(key) is not None}
    return {"temperature": 1.0, "top_k": 50} | options if draws else options | {"temperature": 0.0}


NAMED: dict[str, Sampling] = {
    "greedy": Sampling(),
    # The official code draws from the single most likely token: greedy, except for exact ties.
    "evaluation": Sampling(max_new_tokens=100),
    # The two ways of the official chat(), as 7B-240728 has it; see `Sampling.named` for the others.
    "chat": Sampling(max_new_tokens=2048, temperature=0.7, top_k=100, top_p=0.8, repetition_penalty=1.05),
    "beam": Sampling(max_new_tokens=2048, num_beams=3, repetition_penalty=1.2),
}
