"""API keys: which there are, who has one, and that none can be read anywhere."""

import pytest
from starlette.datastructures import Headers

from owl3_jax.config import ConfigError
from owl3_jax.serving.auth import ApiKeys, read_keys
from owl3_jax.serving.errors import ApiError


def headers(*values: str) -> Headers:
    return Headers(raw=[(b"authorization", value.encode("latin-1")) for value in values])


def test_a_file_has_a_key_a_line_and_comments(tmp_path):
    path = tmp_path / "keys"
    path.write_bytes(b"\xef\xbb\xbf# of the team\nsk-one\n\n  sk-two  \r\n  # old\nsk#three\n")
    assert read_keys(path) == ["sk-one", "sk-two", "sk#three"]


@pytest.mark.parametrize("content", [b"", b"# nothing\n\n", b"\xff\xfe"])
def test_a_file_without_keys_is_refused(tmp_path, content):
    path = tmp_path / "keys"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="keys"):
        read_keys(path)


@pytest.mark.parametrize("key", ["", "two words", "schlüssel", "tab\tbed"])
def test_a_key_that_no_header_can_carry_is_refused_without_being_shown(key):
    with pytest.raises(ConfigError, match="API key 2 is empty") as raised:
        ApiKeys(["good", key])
    assert not key or key not in str(raised.value)


def test_without_keys_everybody_may_ask():
    assert not ApiKeys()
    assert ApiKeys().client_of(headers()) is None
    assert ApiKeys().client_of(headers("Bearer whatever")) is None


def test_a_holder_goes_by_the_number_of_the_key():
    keys = ApiKeys(["one", "two", "one"])
    assert keys
    assert keys.client_of(headers("Bearer one")) == "key-1"
    assert keys.client_of(headers("bearer  two")) == "key-2"


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ((), "missing_api_key"),
        (("Basic sk-one",), "missing_api_key"),
        (("Bearer",), "missing_api_key"),
        (("sk-one",), "missing_api_key"),
        (("Bearer sk-one sk-two",), "missing_api_key"),
        (("Bearer sk-one", "Bearer sk-two"), "missing_api_key"),
        (("Bearer sk-on",), "invalid_api_key"),
        (("Bearer sk-onee",), "invalid_api_key"),
        (("Bearer \xff\xfe",), "invalid_api_key"),
    ],
)
def test_anything_else_is_refused_without_being_shown(values, code):
    with pytest.raises(ApiError) as raised:
        ApiKeys(["sk-one", "sk-two"]).client_of(headers(*values))
    assert (raised.value.status, raised.value.code) == (401, code)
    assert raised.value.headers == {"www-authenticate": "Bearer"}
    assert "sk-on" not in raised.value.message


def test_every_key_is_compared_whichever_fits(monkeypatch):
    import hmac

    compared: list[tuple[bytes, bytes]] = []
    compare = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append((a, b)) or compare(a, b))
    keys = ApiKeys(["one", "two", "three"])
    assert keys.client_of(headers("Bearer one")) == "key-1"
    assert len(compared) == 3
    assert {len(digest) for pair in compared for digest in pair} == {32}
