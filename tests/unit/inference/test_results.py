import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from owl3_jax.inference.requests import Failure
from owl3_jax.inference.results import Results

RECORDS = [{"id": 1, "answers": [{"text": "é\n\ud800"}]}, {"id": "1", "error": "why"}, {"id": 2, "answers": []}]
REQUESTS = [Failure(record["id"], "") for record in RECORDS]


def test_results_are_found_again(tmp_path):
    path = tmp_path / "out.jsonl"
    results = Results(path)
    assert results.waiting(REQUESTS) == REQUESTS and not path.exists()
    results.append(RECORDS[:2])
    for each in (results, Results(path)):
        assert each.waiting(REQUESTS) == REQUESTS[2:]
        assert each.failures(REQUESTS) == 1 and each.failures(REQUESTS[:1]) == 0


def test_records_are_read_again_from_the_file(tmp_path):
    results = Results(tmp_path / "out.jsonl")
    assert list(results.records()) == [] and 1 not in results
    results.append([{"id": 1, "answers": [{"text": "é\n"}]}])
    results.append(RECORDS[1:])
    for each in (results, Results(tmp_path / "out.jsonl")):
        assert list(each.records()) == [{"id": 1, "answers": [{"text": "é\n"}]}, *RECORDS[1:]]
        assert 1 in each and 3 not in each


@settings(deadline=None, max_examples=40)
@given(cut=st.integers(0, 200))
def test_wherever_the_file_was_cut_off_whole_lines_stay_and_the_rest_waits(tmp_path_factory, cut):
    path: Path = tmp_path_factory.mktemp("cut") / "out.jsonl"
    Results(path).append(RECORDS)
    whole = path.read_bytes()
    path.write_bytes(whole[:cut])
    results = Results(path)
    lines = sum(end.start() <= cut for end in re.finditer(b"\n", whole))  # a line that lacks its newline alone is whole
    assert results.waiting(REQUESTS) == REQUESTS[lines:]
    results.append(RECORDS[lines:])
    assert path.read_bytes() == whole


@pytest.mark.parametrize("line", ["{", "[]", '{"id": 1}', '{"answers": []}', json.dumps({"id": 1, "prompt": "a"}), ""])
def test_another_file_is_refused_and_left_as_it_is(tmp_path, line):
    path = tmp_path / "out.jsonl"
    path.write_text(f'{{"id": 1, "error": ""}}\n{line}\n{{')
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"line 2 of .*out\.jsonl is not a result"):
        Results(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("text", ['{"hidden_size": 896}', "[1, 2]", "no results", '{"id": 1, "prompt": "a"}', '{"ids": 1'])
def test_another_file_of_one_line_is_refused_and_left_as_it_is(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"line 1 of .*config\.json is not a result"):
        Results(path)
    assert path.read_text() == text


def test_a_place_that_cannot_be_written_is_an_error_before_anything_is_answered(tmp_path):
    (tmp_path / "file").touch()
    places = {
        "missing/out.jsonl": f"there is no folder {tmp_path}/missing: the results would go there; create it first",
        "file/out.jsonl": f"{tmp_path}/file is a file: the results would go there; move it away",
        ".": f"{tmp_path} is a folder; name a file for the results",
    }
    for place, message in places.items():
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            Results(tmp_path / place)


@pytest.mark.parametrize("exists", [True, False])
def test_a_file_without_permission_is_an_error_before_anything_is_answered(tmp_path, monkeypatch, exists):
    if exists:
        (tmp_path / "out.jsonl").touch()
    # The superuser may write everywhere, so that the system's answer is replaced.
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != (tmp_path / "out.jsonl" if exists else tmp_path))
    with pytest.raises(ValueError, match=r"out\.jsonl cannot be written; check its permissions"):
        Results(tmp_path / "out.jsonl")
