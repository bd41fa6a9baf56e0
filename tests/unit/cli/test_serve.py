"""`owl3 serve`: its flags, what it refuses before it loads anything, and its life from start to signal."""

import os
import signal
import socket
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest

from owl3_jax.cli import serve as command
from owl3_jax.cli.model_flags import ModelFlags
from owl3_jax.cli.serve_flags import Flags, listed
from owl3_jax.config import ConfigError
from owl3_jax.inference.sampling import Sampling
from owl3_jax.serving.settings import EngineSettings
from tests.fake_serving import FakeEngine

_PATIENCE = 120.0


@pytest.fixture
def engines(monkeypatch) -> SimpleNamespace:
    """What is started in place of the engine."""
    started = SimpleNamespace(engine=FakeEngine(), settings=None)

    def start_engine(owl, settings) -> FakeEngine:
        started.settings = settings
        return started.engine

    monkeypatch.delenv("OWL3_API_KEY", raising=False)
    from owl3_jax.cli import serving

    monkeypatch.setattr(serving, "start_engine", start_engine)
    monkeypatch.setattr(serving, "use_json_logs", lambda: None)  # the logs are pytest's
    return started


def flags(**fields: object) -> Flags:
    of_engine = {name: fields.pop(name) for name in ("max_images", "max_queued") if name in fields}
    return Flags(ModelFlags(Path("digits")), EngineSettings(**of_engine), **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "argv", [["--port", "70000"], ["--max-queued", "0"], ["--max-images", "-1"], ["--port", "x"], ["--n", "2"]]
)
def test_a_wrong_command_line_exits_with_2(argv, capsys):
    with pytest.raises(SystemExit, match="2"):
        command.main(["--checkpoint", "digits", *argv])
    assert capsys.readouterr().err


def test_a_port_in_use_is_said_before_the_model_is_loaded(engines, monkeypatch):
    from owl3_jax.cli import serving

    monkeypatch.setattr(serving, "load_model", lambda _: pytest.fail("it was loaded"))
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(SystemExit, match=r"cannot listen at 127\.0\.0\.1, port"),
    ):
        command.main(["--checkpoint", "digits", "--port", str(taken.getsockname()[1])])


@pytest.mark.parametrize(
    "argv",
    [
        ["--api-key-file", "/nowhere"],
        ["--allowed-local-media-path", "/nowhere"],
        ["--allowed-media-domains", "https://a.example/path"],
        ["--host", "256.0.0.1"],
    ],
)
def test_what_cannot_work_is_said_before_the_model_is_loaded(engines, monkeypatch, argv):
    from owl3_jax.cli import serving

    monkeypatch.setattr(serving, "load_model", lambda _: pytest.fail("it was loaded"))
    with pytest.raises(SystemExit, match="error: "):
        command.main(["--checkpoint", "digits", "--port", "0", *argv])


def test_lists_may_be_repeated_and_have_commas():
    assert list(listed([["a, b", "c"], [",d,"]])) == ["a", "b", "c", "d"]


@pytest.mark.parametrize(("host", "is_local"), [("127.0.0.1", True), ("127.8.0.1", True), ("::1", True), ("localhost", True)])
@pytest.mark.parametrize("keys", ["", "sk-one"])
def test_without_keys_a_local_server_goes_by_local_names_alone(engines, monkeypatch, host, is_local, keys):
    from owl3_jax.cli.serving import settings_of

    monkeypatch.setenv("OWL3_API_KEY", keys)
    hosts = settings_of(flags(host=host), Sampling()).allowed_hosts
    assert flags(host=host).is_local == is_local
    assert hosts == (() if keys else ("localhost", "127.0.0.1", "::1", host))
    assert settings_of(flags(host="0.0.0.0"), Sampling()).allowed_hosts == ()
    assert settings_of(flags(host=host, allowed_hosts=(("a,b",),)), Sampling()).allowed_hosts == ("a", "b")


def test_flags_become_settings(engines, tmp_path):
    from owl3_jax.cli.serving import limits_of, policy_of, settings_of

    given = flags(
        max_images=7,
        max_pixels=100,
        max_queued=3,
        max_body_mib=2,
        allowed_media_domains=(("a.example", "b.example,c.example"),),
    )
    settings, limits = settings_of(given, Sampling()), limits_of(given)
    assert settings.models == ("digits",)
    assert (settings.max_media, settings.max_answers, settings.max_preparing, settings.bodies.bytes_each) == (7, 16, 19, 2**21)
    assert (limits.max_images, limits.max_pixels, limits.max_frames) == (7, 100, 7)
    assert policy_of(given).allowed_domains == ("a.example", "b.example", "c.example") and policy_of(given).local_path is None
    named = settings_of(flags(served_model_name=(("one",), ("two",))), Sampling())
    assert named.models == ("one", "two")


def test_keys_come_from_the_file_and_the_environment(engines, monkeypatch, tmp_path):
    from owl3_jax.cli.serving import keys_of

    assert not keys_of(flags())
    path = tmp_path / "keys"
    path.write_text("sk-one\n")
    monkeypatch.setenv("OWL3_API_KEY", "sk-two")
    assert keys_of(flags(api_key_file=path)) and keys_of(flags())
    monkeypatch.setenv("OWL3_API_KEY", "sk two")
    with pytest.raises(ConfigError, match="API key 2 is empty"):
        keys_of(flags(api_key_file=path))


def test_an_open_server_warns_loudly(engines, caplog):
    from owl3_jax.cli.serving import _warn_if_open
    from owl3_jax.serving.auth import ApiKeys

    _warn_if_open(flags(host="0.0.0.0"), ApiKeys())
    assert "ANYBODY who can reach 0.0.0.0:8000" in caplog.text
    caplog.clear()
    _warn_if_open(flags(host="0.0.0.0"), ApiKeys(["sk-one"]))
    _warn_if_open(flags(), ApiKeys())
    assert not caplog.text


def test_it_serves_until_a_signal_and_ends_what_it_started(engines):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    answers: list[httpx.Response] = []

    def visit() -> None:
        url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            try:
                if httpx.get(f"{url}/ready").status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.1)
        messages = [{"role": "user", "content": "what digit is this"}]
        answers.append(httpx.post(f"{url}/v1/chat/completions", json={"model": "digits", "messages": messages}, timeout=60))
        os.kill(os.getpid(), signal.SIGTERM)

    visitor = threading.Thread(target=visit)
    visitor.start()
    command.main(["--checkpoint", "digits", "--port", str(port), "--decode-workers", "1", "--max-queued", "5"])
    visitor.join()
    assert answers[0].status_code == 200 and answers[0].json()["usage"]["prompt_tokens"] > 4
    assert engines.settings.max_queued == 5 and engines.engine.closed.is_set()
    assert engines.engine.generations[0].sampling.temperature == Sampling.named("chat").temperature


def test_it_ends_with_an_error_when_its_engine_has_failed(engines):
    engines.engine.has_failed = True
    with pytest.raises(SystemExit, match="the engine has failed"):
        command.main(["--checkpoint", "digits", "--port", "0", "--decode-workers", "1"])
    assert engines.engine.closed.is_set()
