import json
from pathlib import Path

import pytest

from owl3_jax.inference.requests import Failure, Request, read_requests
from owl3_jax.inference.sampling import Sampling

DEFAULT = Sampling(max_new_tokens=9)


def read(tmp_path, *lines: str) -> list[Request | Failure]:
    (tmp_path / "in.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return read_requests(tmp_path / "in.jsonl", DEFAULT)


def test_lines_become_requests_with_paths_from_the_files_folder(tmp_path):
    messages = [{"role": "user", "content": "é <|video|>"}]
    full = {"id": "a", "messages": messages, "videos": ["b/c.mp4"], "images": ["/d.jpg"], "sampling": {"temperature": 1}}
    assert read(tmp_path, json.dumps(full, ensure_ascii=False), "", ' {"prompt": ""} ') == [
        Request("a", messages, [Path("/d.jpg")], [tmp_path / "b/c.mp4"], Sampling(max_new_tokens=9, temperature=1.0)),
        Request(3, "", [], [], DEFAULT),
    ]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "invalid JSON"),
        ("[]", "a request must be a JSON object, got list"),
        ("{}", 'a request needs either "prompt" or "messages"'),
        ('{"prompt": "", "messages": []}', 'a request needs either "prompt" or "messages"'),
        ('{"prompt": 1}', "prompt must be a string, got 1"),
        ('{"messages": ["a"]}', "messages must be a list"),
        ('{"prompt": "", "images": "a.jpg"}', "images must be a list of paths, got 'a.jpg'"),
        ('{"prompt": "", "videos": [1]}', "videos must be a list of paths"),
        ('{"prompt": "", "image": []}', "unknown key 'image'; known keys: id, prompt"),
        ('{"prompt": "", "sampling": 1}', "sampling must be an object"),
        ('{"prompt": "", "sampling": {"topk": 1}}', "did you mean 'top_k'"),
        ('{"prompt": "", "sampling": {"n": 5.0}}', "sampling option n must be a whole number of at least 1, got 5.0"),
        ('{"prompt": "", "id": NaN}', "id must be a string or a whole number, got nan"),
        ('{"prompt": null}', 'a request needs either "prompt" or "messages"'),
        ("null", "a request must be a JSON object, got NoneType"),
        ("[" * 10**5, "invalid JSON: it is nested too deeply"),
        ('{"prompt": "", "id": 1.5}', "id must be a string or a whole number, got 1.5"),
    ],
)
def test_a_line_that_is_no_request_is_a_failure_that_says_where_and_why(tmp_path, line, complaint):
    good, bad = read(tmp_path, '{"prompt": "a"}', line)
    assert good == Request(1, "a", [], [], DEFAULT)
    assert isinstance(bad, Failure) and bad.id == 2
    assert bad.error.startswith("line 2: ") and complaint in bad.error


def test_a_failure_keeps_its_id_and_broken_text_harms_no_other_line(tmp_path):
    (tmp_path / "in.jsonl").write_bytes(b'{"id": "x"}\r\n"\xff"\n{"prompt": "a"}')
    assert [request.id for request in read_requests(tmp_path / "in.jsonl", DEFAULT)] == ["x", 2, 3]


def test_null_counts_as_absent(tmp_path):
    line = {"id": None, "prompt": "a", "messages": None, "images": None, "videos": None, "sampling": None}
    assert read(tmp_path, json.dumps(line)) == [Request(1, "a", [], [], DEFAULT)]


def test_uris_keep_themselves_and_paths_in_parts_start_at_the_files_folder(tmp_path):
    uris = ["data:image/png;base64,AA==", "file:///photos/a.png", "https://example.org/a.png"]
    parts = [
        {"type": "image_url", "image_url": {"url": "cat.jpg", "detail": "low"}},
        {"type": "image_url", "image_url": uris[0]},
        {"type": "video", "path": "film.mp4"},
        {"type": "text", "text": "cat.jpg"},
        {"type": "image"},
        {"type": "image", "image": 3},
        "text",
    ]
    located = [
        {"type": "image_url", "image_url": {"url": tmp_path / "cat.jpg", "detail": "low"}},
        {"type": "image_url", "image_url": uris[0]},
        {"type": "video", "path": tmp_path / "film.mp4"},
        *parts[3:],
    ]
    line = {"messages": [{"role": "user", "content": parts}, {"content": 3}], "images": [*uris, "", "a.png"]}
    (request,) = read(tmp_path, json.dumps(line))
    assert request.messages == [{"role": "user", "content": located}, {"content": 3}]
    assert request.images == [*uris, "", tmp_path / "a.png"]


def test_long_values_are_not_repeated(tmp_path):
    long = "data:image/png;base64," + "A" * 10**6
    lines = [{"prompt": "", "images": long}, {"prompt": [long]}, {"prompt": "", "id": [long]}, {"prompt": "", long: 1}]
    lines += [
        {"prompt": "", "sampling": {"seed": long}},
        {"prompt": "", "sampling": {long: 1}},
        {"prompt": "", "sampling": long},
    ]
    failures = read(tmp_path, *map(json.dumps, lines))
    assert len(failures) == len(lines)
    assert all(isinstance(failure, Failure) and len(failure.error) < 400 for failure in failures)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_files_of_windows_are_read(tmp_path, end):
    (tmp_path / "in.jsonl").write_bytes(f'\ufeff{{"prompt": "a"}}{end}{{"prompt": "é"}}{end}'.encode())
    assert [request.messages for request in read_requests(tmp_path / "in.jsonl", DEFAULT)] == ["a", "é"]
    (tmp_path / "in.jsonl").write_text('{"prompt": "a"}', encoding="utf-16")
    with pytest.raises(ValueError, match=r"in\.jsonl is in UTF-16; save it in UTF-8"):
        read_requests(tmp_path / "in.jsonl", DEFAULT)


def test_ids_must_differ(tmp_path):
    with pytest.raises(ValueError, match=r"in\.jsonl: lines 1 and 2 have the same id 2"):
        read(tmp_path, '{"id": 2, "prompt": ""}', '{"prompt": ""}')
