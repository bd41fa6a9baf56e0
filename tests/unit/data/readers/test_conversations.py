"""Stored conversations of all dialects become the same record, and everything that is wrong with one is named."""

import pytest

from owl3_jax.config import ColumnsConfig
from owl3_jax.data.readers.conversations import ConversationRecords, read_conversation
from owl3_jax.data.readers.records import BadRecord

DEFAULT = ColumnsConfig()
ASKED, ANSWER = "<image>\nWhat is this?", "A cat."
LLAVA = [{"from": "human", "value": ASKED}, {"from": "gpt", "value": ANSWER}]
OURS = [{"role": "user", "content": "<|image|>\nWhat is this?"}, {"role": "assistant", "content": ANSWER}]


def swift(**changes: object) -> dict[str, object]:
    messages = [{"role": "user", "content": ASKED}, {"role": "assistant", "content": ANSWER}]
    return {"messages": messages, "images": ["cat.png"], **changes}


def turns(*contents: str, first: str = "user") -> list[dict[str, str]]:
    roles = ("user", "assistant") if first == "user" else ("assistant", "user")
    return [{"role": roles[index % 2], "content": content} for index, content in enumerate(contents)]


@pytest.mark.parametrize(
    "tree, columns",
    [
        (swift(), DEFAULT),
        (swift(images=None, image="cat.png"), DEFAULT),
        (
            {
                "id": 7,
                "image": "cat.png",
                "conversations": [{"from": "human", "value": ASKED}, {"from": "gpt", "value": ANSWER}],
            },
            DEFAULT,
        ),
        (
            {"dialog": [{"who": "q", "said": "[IMG]\nWhat is this?"}, {"who": "a", "said": ANSWER}], "pics": ["cat.png"]},
            ColumnsConfig(
                messages="dialog",
                role="who",
                content="said",
                images="pics",
                user_role="q",
                assistant_role="a",
                image_tag="[IMG]",
            ),
        ),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "image_url", "image_url": {"url": "cat.png"}},
                            {"type": "text", "text": "What is this?"},
                        ],
                    },
                    {"role": "assistant", "content": [{"type": "text", "text": ANSWER}]},
                ]
            },
            DEFAULT,
        ),
        (swift(images=[{"bytes": None, "path": "cat.png"}]), DEFAULT),
        (swift(messages=OURS), DEFAULT),
    ],
)
def test_all_dialects_mean_the_same(tree, columns):
    conversation = read_conversation(tree, "/photos", columns).conversation
    assert conversation.messages == OURS
    assert conversation.images == ["/photos/cat.png"] and conversation.videos == []


def test_media_of_all_kinds():
    tree = {
        "messages": turns("<video>and<image><image><image>", "yes"),
        "images": ["/abs/a.png", b"\x89PNG", {"bytes": b"jpeg", "path": "b.jpg"}],
        "videos": [["1.png", "2.png"]],
    }
    conversation = read_conversation(tree, "gs://bucket/photos", DEFAULT).conversation
    assert conversation.images == ["/abs/a.png", b"\x89PNG", b"jpeg"]
    assert conversation.videos == [["gs://bucket/photos/1.png", "gs://bucket/photos/2.png"]]
    uris = swift(images=["data:image/png;base64,iVBO"])
    assert read_conversation(uris, "/photos", DEFAULT).conversation.images == ["data:image/png;base64,iVBO"]


def test_text_alone_and_what_is_beside_it():
    read = read_conversation({"messages": turns("Hi", "Hello"), "images": [], "videos": None, "id": 3}, "", DEFAULT)
    assert read.conversation.images == [] and read.metadata == {"id": 3}


def test_messages_without_loss_say_so():
    messages = [*turns("a", "b"), {"role": "user", "content": "c"}, {"role": "assistant", "content": "d", "loss": False}]
    read = read_conversation({"messages": [{**m, "loss": None} if "loss" not in m else m for m in messages]}, "", DEFAULT)
    assert [message.get("loss", True) for message in read.conversation.messages] == [True, True, True, False]


@pytest.mark.parametrize("system", [{"system": "Be brief."}, {}])
def test_system_texts(system):
    stored = {"messages": turns("Hi", "Hello"), **system}
    record = ConversationRecords([stored], "chat", "", DEFAULT, system="Be kind.")[0]
    assert record.messages[0] == {"role": "system", "content": system.get("system", "Be kind.")}
    assert record.name == "chat[0]" and len(record.messages) == 3


@pytest.mark.parametrize(
    "tree, problems",
    [
        ([], {"malformed": "a record must be an object, not of type list"}),
        (None, {"malformed": "a record must be an object, not null"}),
        ({"text": "x"}, {"malformed": "it has no 'messages' or 'conversations'; its keys are 'text'"}),
        ({"messages": []}, {"malformed": "'messages' is empty"}),
        ({"messages": "hi"}, {"malformed": "'messages' is of type str; it must be a list"}),
        ({"messages": ["hi"]}, {"malformed": "message 0 is of type str"}),
        ({"messages": [{"role": "user"}]}, {"malformed": "message 0 has no 'content'; its keys are 'role'"}),
        ({"messages": [{"role": "user", "content": 3}]}, {"malformed": "message 0 has content of type int"}),
        ({"messages": turns("a", "b"), "images": 3}, {"malformed": "image 0 is of type int"}),
        ({"messages": turns("<image>", "b"), "images": [{"url": None}]}, {"malformed": "image 0 is an object without"}),
        ({"messages": [{**turns("a")[0], "loss": "no"}]}, {"malformed": "message 0 has loss 'no'"}),
        (
            {"messages": [{"role": "user", "content": [{"type": "audio", "audio": "a.wav"}]}]},
            {"malformed": "part 0 of message 0 has type 'audio'"},
        ),
        (
            {"messages": turns("a", "b", first="assistant")},
            {"roles": "message 0 is the assistant's where the user's"},
        ),
        ({"messages": [*turns("a"), *turns("b", "c")]}, {"roles": "message 1 is the user's where the assistant's belongs"}),
        ({"messages": [*turns("a", "b"), {"role": "system", "content": "c"}]}, {"roles": "message 2 is the system's"}),
        ({"messages": [*turns("a"), {"role": "tool", "content": "c"}]}, {"roles": "message 1 has role 'tool'"}),
        ({"messages": [{"role": "system", "content": "c"}]}, {"roles": "a system message alone"}),
        ({"messages": [*turns("a"), {"role": "assistant", "content": None}]}, {"no-answer": "message 1 is empty"}),
        ({"messages": turns("a", " \n")}, {"no-answer": "the answer in message 1 is empty"}),
        ({"messages": turns("a", "b", "c")}, {"no-answer": "message 2, the last one, is the user's: its answer is missing"}),
        ({"messages": turns("a")}, {"no-answer": "message 0, the last one"}),
        ({"messages": [turns("a")[0], {**turns("a", "b")[1], "loss": False}]}, {"no-answer": "all answers have loss false"}),
        (swift(images=[]), {"placeholders": "the user's text has 1 <image> tag, but there are 0 images"}),
        (swift(images=["a.png", "b.png"]), {"placeholders": "the user's text has 1 <image> tag, but there are 2 images"}),
        (swift(videos=["a.mp4"]), {"placeholders": "the user's text has 0 <video> tags, but there is 1 video"}),
        ({"messages": turns("a", "b"), "images": ["a.png"]}, {"placeholders": "0 <image> tags, but there is 1 image"}),
        ({"messages": turns("a", "see <image>")}, {"placeholders": "message 1 (assistant) contains <image>"}),
        ({"messages": turns("a", "<|image|>")}, {"placeholders": "message 1 (assistant) contains <|image|>"}),
        (swift(images=[], messages=turns(ASKED, "")), {"no-answer": "is empty", "placeholders": "1 <image> tag"}),
    ],
)  # fmt: skip
def test_problems_are_named(tree, problems):
    with pytest.raises(BadRecord) as raised:
        read_conversation(tree, "", DEFAULT)
    found = {problem.kind: problem.detail for problem in raised.value.problems}
    assert found.keys() == problems.keys()
    for kind, detail in problems.items():
        assert detail in found[kind]
