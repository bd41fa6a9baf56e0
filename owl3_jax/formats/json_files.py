"""JSON files that people edit and tools write: read as an object, each value checked before it is used.

Every complaint is one sentence with the key, so that a caller has only to add the file.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Literal, TypeVar, cast, get_origin

from owl3_jax.config import JsonTree, load_json_tree

_LARGEST_FLOAT = sys.float_info.max
_LARGEST = 2**31 - 1  # sizes and positions are 32-bit integers wherever the model is computed
_LONGEST = 60  # characters of a value that a message shows

_T = TypeVar("_T")  # a dataclass


class JsonError(ValueError):
    """A JSON file, or a value in one, that is not what it has to be."""


def read_json_object(path: Path) -> JsonTree:
    """The object in a JSON file.

    Raises JsonError when it cannot be read, is not UTF-8, not JSON or not an object.
    """
    try:
        tree = json.loads(path.read_text(encoding="utf-8-sig"))  # Windows' editors put a byte order mark first
    except OSError as error:
        raise JsonError(f"it cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise JsonError(f"it is not UTF-8: {error.reason} at byte {error.start}") from error
    except ValueError as error:
        raise JsonError(f"it is not JSON: {error}") from error
    except RecursionError as error:
        raise JsonError("it is not JSON for a model: it is nested too deeply") from error
    if not isinstance(tree, dict):
        raise JsonError(f"it is {_shown(tree)}; it must be an object, {{...}}")
    return tree


def check(condition: bool, key: str, value: object, wanted: str) -> None:
    """Raises JsonError, which names the key and shows the value, unless `condition` holds."""
    if not condition:
        raise JsonError(f"{key} is {_shown(value)}; it must be {wanted}")


def whole_number(key: str, value: object) -> int:
    """The value of a key as an integer. Raises JsonError when it is none, or too large for a size."""
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) > _LARGEST:
        raise JsonError(f"{key} is {_shown(value)}; it must be an integer up to {_LARGEST}")
    return value


def number(key: str, value: object) -> float:
    """The value of a key as a float; JSON may write 1000000 for 1e6. Raises JsonError when it is none, or not finite."""
    # An integer may have more digits than fit into a float; NaN compares as false.
    if isinstance(value, int | float) and not isinstance(value, bool) and -_LARGEST_FLOAT <= value <= _LARGEST_FLOAT:
        return float(value)
    raise JsonError(f"{key} is {_shown(value)}; it must be a finite number")


def whole_numbers(key: str, value: object) -> tuple[int, ...]:
    """The value of a key as a tuple of integers. Raises JsonError when it is none."""
    if not isinstance(value, list | tuple):
        raise JsonError(f"{key} is {_shown(value)}; it must be a list of integers")
    return tuple(whole_number(f"{key}[{index}]", item) for index, item in enumerate(value))


def values_of(cls: type, tree: JsonTree, prefix: str = "") -> JsonTree:
    """The values in `tree` for the fields of a dataclass, each of its field's type; other keys are left out.

    Raises JsonError for a value of another type; `prefix` goes before its key.
    """
    fields = [field for field in dataclasses.fields(cls) if field.name in tree]
    return {field.name: _value(f"{prefix}{field.name}", field.type, tree[field.name]) for field in fields}


def load_dataclass(cls: type[_T], key: str, value: object) -> _T:
    """The dataclass from what `dataclasses.asdict` and JSON made of it, the value of `key`.

    Raises JsonError for a value of a wrong type, ConfigError for an unknown field or a value that cannot work.
    """
    if not isinstance(value, dict):
        raise JsonError(f"{key} is {_shown(value)}; it must be an object, {{...}}")
    return load_json_tree(cls, value | values_of(cls, value, f"{key}."))


def _value(key: str, kind: object, value: object) -> object:
    if kind is bool:
        check(isinstance(value, bool), key, value, "true or false")
    elif kind is int:
        return whole_number(key, value)
    elif kind is float:
        return number(key, value)
    elif kind is str or get_origin(kind) is Literal:
        check(isinstance(value, str), key, value, "a string")
    elif get_origin(kind) is tuple:
        return whole_numbers(key, value)
    elif isinstance(kind, type) and dataclasses.is_dataclass(kind):
        check(isinstance(value, dict), key, value, "an object, {...}")
        return {**cast(JsonTree, value), **values_of(kind, cast(JsonTree, value), f"{key}.")}
    return value


def _shown(value: object) -> str:
    """A value as JSON has it, cut when it is long."""
    text = json.dumps(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
