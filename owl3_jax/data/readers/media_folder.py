"""Trees of a folder of images or videos with a file of captions, as Hugging Face's imagefolder and videofolder have them.

`metadata.jsonl` or `metadata.csv` lists `file_name` and a text (`text`, `caption` or `answer`; `question` or `prompt` for what
the user asks). Without it, `name.txt` beside `name.jpg` or `name.mp4` is its caption.
"""

import csv
import io
from pathlib import PurePath

from owl3_jax.data.readers.json_files import JsonTrees
from owl3_jax.data.readers.records import BadRecord, Problem, Trees
from owl3_jax.data.readers.webdataset import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS
from owl3_jax.host import storage

LISTS = ("metadata.jsonl", "metadata.csv")
_ANSWERS, _QUESTIONS = ("text", "caption", "answer"), ("question", "prompt")


class MediaFolderTrees:
    """`Trees` of a folder: each file with its caption."""

    def __init__(self, folder: str) -> None:
        """Lists the folder. Raises StorageError."""
        self._folder = folder
        self._rows: Trees = _rows(folder)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> object:
        row = self._rows[index]
        if not isinstance(row, dict):
            raise BadRecord(Problem("malformed", "a line of the list must be an object"))
        name = row.get("file_name")
        if not isinstance(name, str) or not name:
            raise BadRecord(Problem("malformed", f"it has no 'file_name'; its keys are {', '.join(map(repr, row))}"))
        is_video = PurePath(name).suffix.lower().lstrip(".") in VIDEO_EXTENSIONS
        tag = "<video>" if is_video else "<image>"
        question = next((str(row[key]) for key in _QUESTIONS if row.get(key)), "")
        asked = question if tag in question else tag + (f"\n{question}" if question else "")
        answer = next((row[key] for key in _ANSWERS if row.get(key) is not None), "")
        messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        return {"messages": messages, "videos" if is_video else "images": [name]}


def _rows(folder: str) -> Trees:
    for name in LISTS:
        location = storage.join(folder, name)
        if storage.exists(location):
            return JsonTrees(location) if name.endswith(".jsonl") else _csv_rows(location)
    known = (*IMAGE_EXTENSIONS, *VIDEO_EXTENSIONS)
    media = [path for path in storage.find(storage.join(folder, "*")) if _extension(path) in known]
    return [{"file_name": PurePath(path).name, "text": _caption_beside(path)} for path in media]


def _csv_rows(location: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(storage.read_bytes(location).decode("utf-8-sig"))))


def _extension(path: str) -> str:
    return PurePath(path).suffix.lower().lstrip(".")


def _caption_beside(path: str) -> str:
    beside = str(path)[: -len(PurePath(path).suffix)] + ".txt"
    return storage.read_bytes(beside).decode("utf-8", "replace").strip() if storage.exists(beside) else ""
