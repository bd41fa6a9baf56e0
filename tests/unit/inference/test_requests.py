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


def test_ids_must_differ(tmp_path):
    with pytest.raises(ValueError, match=r"in\.jsonl: lines 1 and 2 have the same id 2"):
        read(tmp_path, '{"id": 2, "prompt": ""}', '{"prompt": ""}')
