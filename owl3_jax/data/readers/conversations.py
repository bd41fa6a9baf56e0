"""Conversations as people store them, in one form.

ms-swift        {"messages": [{"role", "content", "loss"?}], "images": [...], "videos": [...]}, tags <image> and <video>
LLaVA           {"conversations": [{"from": "human" | "gpt", "value"}], "image": path or paths}
ShareGPT        the same, with other names, which `ColumnsConfig` maps
OpenAI          {"messages": [{"role", "content": [{"type": "image_url", ...}, {"type": "text", ...}]}]}
Hugging Face    any of them as rows of a table, an image as {"bytes", "path"}

Paths start at the folder of the file, or at `media_root`. Media are not opened here.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, cast

from owl3_jax.config import ColumnsConfig, JsonTree
from owl3_jax.data.readers.records import BadRecord, Kind, Problem, Record, Trees
from owl3_jax.host import storage
from owl3_jax.processing.chat import IMAGE, VIDEO, Message, placeholders_of
from owl3_jax.processing.conversation import Conversation, as_conversation, map_sources
from owl3_jax.processing.images import ImageSource
from owl3_jax.processing.location import is_uri
from owl3_jax.processing.video import VideoSource

_MESSAGES = ("messages", "conversations", "conversation")
_ROLE, _CONTENT = ("role", "from"), ("content", "value")
_IMAGES, _VIDEOS = ("images", "image"), ("videos", "video")
_ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}


class _Faults:
    """Problems as they are found: a record may have several."""

    def __init__(self) -> None:
        self.found: list[Problem] = []

    def add(self, kind: Kind, detail: str) -> None:
        self.found.append(Problem(kind, detail))


class ConversationRecords:
    """`Records` over stored trees."""

    def __init__(self, trees: Trees, name: str, media_root: str, columns: ColumnsConfig, system: str | None = None) -> None:
        """`name` is the source's, for messages; `system` the system's text of conversations that have none."""
        self._trees, self._name, self._root, self._columns, self._system = trees, name, media_root, columns, system

    def __len__(self) -> int:
        return len(self._trees)

    def __getitem__(self, index: int) -> Record:
        conversation, metadata = read_conversation(self._trees[index], self._root, self._columns)
        messages = conversation.messages
        if self._system is not None and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self._system}, *messages]
        name = f"{self._name}[{index}]"
        return Record(name, messages, conversation.images, conversation.videos, metadata)


class _Read(NamedTuple):
    """A conversation, and what is stored beside it."""

    conversation: Conversation
    metadata: JsonTree


def read_conversation(tree: object, media_root: str, columns: ColumnsConfig) -> _Read:
    """The conversation that a stored tree means.

    Raises BadRecord with all that is wrong.
    """
    if not isinstance(tree, Mapping):
        raise BadRecord(Problem("malformed", f"a record must be an object, not {_kind(tree)}"))
    present = {key: value for key, value in tree.items() if value is not None}
    key = _find(present, columns.messages, _MESSAGES)
    if key is None:
        wanted = columns.messages or " or ".join(map(repr, _MESSAGES[:2]))
        raise BadRecord(Problem("malformed", f"it has no {wanted}; its keys are {', '.join(map(repr, present)) or 'none'}"))
    images_key, videos_key = _find(present, columns.images, _IMAGES), _find(present, columns.videos, _VIDEOS)
    locate = lambda source: _locate(source, media_root)
    try:
        messages = [_message(m, i, columns, locate) for i, m in enumerate(_listed(present[key], key))]
        system = present.get(columns.system or "system")
        if isinstance(system, str) and system and messages and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": system})
        images = [_medium(x, f"image {i}", locate) for i, x in enumerate(_media(present, images_key))]
        videos = [_video(x, f"video {i}", locate) for i, x in enumerate(_media(present, videos_key))]
        conversation = as_conversation(messages, images, videos)
    except BadRecord:
        raise
    except ValueError as error:
        raise BadRecord(Problem("malformed", str(error))) from error
    faults = _Faults()
    _check_roles(conversation.messages, faults)
    _check_answers(conversation.messages, faults)
    _check_placeholders(conversation, columns, faults)
    if faults.found:
        raise BadRecord(*faults.found, images=conversation.images, videos=conversation.videos)
    used = {key, images_key, videos_key, columns.system or "system"}
    return _Read(conversation, {name: value for name, value in present.items() if name not in used})


def _find(tree: Mapping[str, object], name: str | None, usual: Sequence[str]) -> str | None:
    """The key that there is."""
    return next((key for key in ((name,) if name else usual) if key in tree), None)


def _listed(value: object, key: str) -> list[object]:
    if not isinstance(value, list | tuple) or not value:
        raise ValueError(f"{key!r} is {_kind(value)}; it must be a list of messages" if value else f"{key!r} is empty")
    return list(value)


def _message(message: object, index: int, columns: ColumnsConfig, locate: Callable[[str], str]) -> Message:
    if not isinstance(message, Mapping):
        raise ValueError(f"message {index} is {_kind(message)}; it must be an object")
    role_key, content_key = _find(message, columns.role, _ROLE), _find(message, columns.content, _CONTENT)
    if role_key is None or content_key is None:
        missing = (columns.role or "role") if role_key is None else (columns.content or "content")
        raise ValueError(f"message {index} has no {missing!r}; its keys are {', '.join(map(repr, message)) or 'none'}")
    content, loss, stored_role = message[content_key], message.get("loss"), message[role_key]
    names = {columns.system_role: "system", columns.user_role: "user", columns.assistant_role: "assistant"}
    role = {**_ROLES, **{name: role for name, role in names.items() if name}}.get(str(stored_role))
    if content is None and role == "assistant":
        content = ""  # an answer that is missing
    if not isinstance(content, str | list):
        raise ValueError(
            f"message {index} has content of type {type(content).__name__}; it must be a string or a list of parts"
        )
    if loss is not None and loss not in (True, False):
        raise ValueError(f"message {index} has loss {loss!r}; it must be true or false")
    written = _with_placeholders(content, columns) if role == "user" else content
    located = map_sources({"role": role or str(stored_role), "content": written}, locate)
    return cast(Message, {**located, "loss": False} if loss is not None and not loss else dict(located))


def _with_placeholders(content: str | list[object], columns: ColumnsConfig) -> str | list[object]:
    """The tags of a user's text as our placeholders."""
    if isinstance(content, str):
        return content.replace(columns.image_tag, IMAGE).replace(columns.video_tag, VIDEO)
    return [
        {**part, "text": str(_with_placeholders(part["text"], columns))}
        if isinstance(part, Mapping) and isinstance(part.get("text"), str)
        else part
        for part in content
    ]


def _media(tree: Mapping[str, object], key: str | None) -> Iterator[object]:
    """One or many."""
    value = tree[key] if key else []
    return iter(value if isinstance(value, list | tuple) else [value])


def _medium(source: object, name: str, locate: Callable[[str], str]) -> ImageSource:
    """A path, a URI, bytes, or an object that holds one of them."""
    if isinstance(source, Mapping):
        given = [source[key] for key in ("bytes", "path", "url") if source.get(key) is not None]
        if not given:
            raise ValueError(f"{name} is an object without 'bytes', 'path' and 'url'")
        source = given[0]
    if isinstance(source, bytes):
        return source
    if not isinstance(source, str):
        raise ValueError(f"{name} is {_kind(source)}; it must be a path, a file: or a data: URI")
    return locate(source)


def _video(source: object, name: str, locate: Callable[[str], str]) -> VideoSource:
    """As an image, or a list of frames."""
    if isinstance(source, list | tuple):
        return [_medium(frame, f"frame {index} of {name}", locate) for index, frame in enumerate(source)]
    return cast(VideoSource, _medium(source, name, locate))


def _locate(source: str, root: str) -> str:
    return source if not source or is_uri(source) else storage.join(root, source)


def _check_roles(messages: Sequence[Message], faults: _Faults) -> None:
    """A system message first, if there is one; then the user and the assistant in turn."""
    turns = [message["role"] for message in messages]
    for index, role in enumerate(turns):
        if role not in _ROLES.values():
            faults.add("roles", f"message {index} has role {role[:40]!r}; it must be system, user or assistant")
            return
    first = 1 if turns[0] == "system" else 0
    for index, role in enumerate(turns[first:]):
        wanted = ("user", "assistant")[index % 2]
        if role != wanted:
            faults.add("roles", f"message {index + first} is the {role}'s where the {wanted}'s belongs")
            return
    if len(turns) == first:
        faults.add("roles", "there is a system message alone")


def _check_answers(messages: Sequence[Message], faults: _Faults) -> None:
    answers = {index: message for index, message in enumerate(messages) if message["role"] == "assistant"}
    if empty := [index for index, answer in answers.items() if not answer["content"].strip()]:
        faults.add("no-answer", f"the answer in message {empty[0]} is empty")
    turns_are_right = not any(problem.kind == "roles" for problem in faults.found)
    if messages[-1]["role"] == "user" and turns_are_right:
        faults.add("no-answer", f"message {len(messages) - 1}, the last one, is the user's: its answer is missing")
    if answers and not any(answer.get("loss", True) for answer in answers.values()):
        faults.add("no-answer", "all answers have loss false: there is nothing to learn")


def _check_placeholders(conversation: Conversation, columns: ColumnsConfig, faults: _Faults) -> None:
    users = [message["content"] for message in conversation.messages if message["role"] == "user"]
    found = [placeholder for text in users for placeholder in placeholders_of(text)]
    given = ((IMAGE, columns.image_tag, conversation.images, "image"), (VIDEO, columns.video_tag, conversation.videos, "video"))
    for placeholder, tag, media, kind in given:
        if found.count(placeholder) != len(media):
            tags, there = _plural(found.count(placeholder), f"{tag} tag"), _plural(len(media), kind)
            faults.add("placeholders", f"the user's text has {tags}, but there {'is' if len(media) == 1 else 'are'} {there}")
    for index, message in enumerate(conversation.messages):
        wrong = [tag for tag in (IMAGE, VIDEO, columns.image_tag, columns.video_tag) if tag in message["content"]]
        if message["role"] != "user" and wrong:
            faults.add("placeholders", f"message {index} ({message['role']}) contains {wrong[0]}; only the user's text can")


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _kind(value: object) -> str:
    return "null" if value is None else f"of type {type(value).__name__}"
