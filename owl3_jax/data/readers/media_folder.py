"""Trees of a folder of images or videos with a file of captions, as Hugging Face's imagefolder and videofolder have them.

`metadata.jsonl` or `metadata.csv` lists `file_name` and a text (`text`, `caption` or `answer`; `question` or `prompt` for what
the user asks). Without it, `name.txt` beside `name.jpg` or `name.mp4` is its caption.
"""

import csv
import io
from pathlib import PurePath

from owl3_jax.data.readers.captions import VIDEO_SUFFIXES, captioned, decoded_caption, is_medium, suffix_of
from owl3_jax.data.readers.json_files import JsonTrees
from owl3_jax.data.readers.records import BadRecord, Problem, Trees
from owl3_jax.host import storage

LISTS = ("metadata.jsonl", "metadata.csv")
_ANSWERS, _QUESTIONS = ("text", "caption", "answer"), ("question", "prompt")


class MediaListError(ValueError):
    """A list of captions that cannot be read; the message names it."""


class MediaFolderTrees:
    """`Trees` of a folder: each file with its caption."""

    def __init__(self, folder: str) -> None:
        """Lists the folder. Raises StorageError, and MediaListError or JsonFileError for its list."""
        self._folder = folder
        lists = (storage.join(folder, name) for name in LISTS)
        self._list = next((location for location in lists if storage.exists(location)), None)
        self._rows: Trees = _listed(self._list) if self._list else _found(folder)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> object:
        row = self._rows[index]
        if not isinstance(row, dict):
            raise BadRecord(Problem("malformed", "a line of the list must be an object"))
        name = row.get("file_name")
        if not isinstance(name, str) or not name:
            if "file_name" in row:
                raise BadRecord(Problem("malformed", f"its 'file_name' must be the name of a file, got {name!r}"))
            raise BadRecord(Problem("malformed", f"it has no 'file_name'; its keys are {', '.join(map(repr, row))}"))
        is_video = suffix_of(name) in VIDEO_SUFFIXES
        tag = "<video>" if is_video else "<image>"
        question = next((str(row[key]) for key in _QUESTIONS if row.get(key)), "")
        asked = question if tag in question else tag + (f"\n{question}" if question else "")
        given = (row[key] for key in _ANSWERS if row.get(key) is not None)
        answer = next(given, "") if self._list else _caption_beside(storage.join(self._folder, name))
        return captioned(asked, answer) | {"videos" if is_video else "images": [name]}


def _listed(location: str) -> Trees:
    return JsonTrees([location]) if location.endswith(".jsonl") else _csv_rows(location)


def _found(folder: str) -> Trees:
    """The media of a folder; their captions are read when they are asked for."""
    return [{"file_name": PurePath(path).name} for path in storage.find(storage.join(folder, "*")) if is_medium(path)]


def _csv_rows(location: str) -> list[dict[str, str]]:
    try:
        text = storage.read_bytes(location).decode("utf-8-sig")
        return list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise MediaListError(f"{location} is not a table of comma-separated values in UTF-8: {error}") from error


def _caption_beside(path: str) -> str:
    beside = path[: -len(suffix_of(path))] + ".txt"
    return decoded_caption(storage.read_bytes(beside), "the .txt beside it") if storage.exists(beside) else ""
