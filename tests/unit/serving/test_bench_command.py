"""The command `owl3 serve-bench` against a server: what it sends, prints and writes, and its exit codes."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading

import pytest
from aiohttp import web
from PIL import Image

from owl3_jax.cli import main, serve_bench
from owl3_jax.serving.bench.pictures import Picture
from tests.unit.serving.bench_server import FakeServer, answer_shortly, serving_beside


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures of different colours, so that none needs scikit-learn."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(6):
        Image.radial_gradient("L").resize((24, 20 + number)).convert("RGB").save(folder / f"{number}.png")
    return folder


def run(server: FakeServer, *flags: object) -> int:
    """The exit code."""
    with serving_beside(server) as url:
        try:
            main(["serve-bench", url, *map(str, flags)])
        except SystemExit as ended:
            return ended.code
    return 0


def refusing_every_second() -> FakeServer:
    async def refuse(request: web.Request, body: dict) -> web.StreamResponse:
        return web.Response(status=429) if len(server.bodies) % 2 else await answer_shortly(request, body)

    server = FakeServer(refuse)
    return server


def test_it_measures_and_writes_all_it_found(folder, tmp_path, capsys):
    server, report, plot = FakeServer(), tmp_path / "a" / "report.json", tmp_path / "b" / "plot.png"
    flags = [
        "--images",
        folder,
        "--images-per-request",
        "1:3",
        "--concurrency",
        2,
        "--requests",
        5,
        "--turns",
        2,
        "--warmup",
        1,
    ]
    assert run(server, *flags, "--api-key", "secret", "--json", report, "--plot", plot) == 0
    printed = capsys.readouterr()
    assert "10 of 10" in printed.out and f"{report}\n{plot}\n" in printed.out
    assert "secret" not in printed.out + printed.err + report.read_text()
    assert len(server.bodies) == 12 and {headers["Authorization"] for headers in server.headers} == {"Bearer secret"}
    assert {body["model"] for body in server.bodies} == {"owl"}
    read = json.loads(report.read_text())
    assert len(read["runs"][0]["requests"]) == 10 and read["complete"] is True and read["model"] == "owl"
    assert (read["metrics_before"], read["metrics_after"]) == ("reads_total 1\n", "reads_total 2\n")
    assert read["command"][-6:] == ["--api-key", "***", "--json", str(report), "--plot", str(plot)]
    with Image.open(plot) as picture:
        assert picture.format == "PNG"


def test_the_key_may_be_in_the_environment(folder, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "hidden")
    server = FakeServer()
    assert run(server, "--images", folder, "--requests", 1) == 0
    assert server.headers[0]["Authorization"] == "Bearer hidden"


@pytest.mark.parametrize("words", [["--api-key", "k"], ["--api-key=k"], ["--api_key", "k"], ["--api_key=k"]])
def test_the_record_of_the_command_has_no_key(words):
    assert "k" not in " ".join(serve_bench.without_key(["u", *words, "--json", "f"])).replace("key", "")


def test_a_failed_request_makes_the_exit_code_1_unless_it_is_allowed(folder, capsys):
    flags = ["--images", folder, "--requests", 4]
    assert run(refusing_every_second(), *flags) == 1
    assert "2 x http_429" in capsys.readouterr().out
    assert run(refusing_every_second(), *flags, "--allow-errors") == 0


def test_a_failed_warm_up_ends_it(folder, capsys):
    async def refuse(request: web.Request, body: dict) -> web.Response:
        return web.json_response({"error": {"message": "no such model"}}, status=404)

    assert run(FakeServer(refuse), "--images", folder, "--warmup", 2) == (
        "error: 2 of 2 requests of the warm-up failed: http_404: no such model"
    )
    assert capsys.readouterr().out == ""


def test_the_comparison_shows_every_run_other_pictures_of_the_same_sizes(folder, tmp_path, capsys):
    server, report = FakeServer(), tmp_path / "report.json"
    flags = ["--images", folder, "--images-per-request", "1:3", "--concurrency", 3, "--requests", 4, "--compare-sequential"]
    assert run(server, *flags, "--json", report) == 0
    assert "times the output tokens/s of one after the other (rounds: " in capsys.readouterr().out
    read = json.loads(report.read_text())
    names = ["3 at once", "one after the other"]
    assert [run["name"] for run in read["runs"]] == [*names, *reversed(names)]
    assert [summary["name"] for summary in read["summaries"]] == names and read["ratios"]["output_tokens_per_s"] > 0
    assert read["summaries"][1]["most_at_once"] == 1
    shown = [picture for pictures in server.pictures for picture in pictures]
    assert len(shown) == len(set(shown))
    runs = [[request["images"] for request in run["requests"]] for run in read["runs"]]
    assert all(sorted(images) == sorted(runs[0]) for images in runs)


def test_an_open_loop_says_its_rate(folder, capsys):
    assert run(FakeServer(), "--images", folder, "--rate", 200, "--duration", 0.1, "--slo-ttft", 60) == 0
    printed = capsys.readouterr().out
    assert "open loop, 200/s" in printed and "goodput, requests/s" in printed


def test_a_load_without_any_request_is_an_error(folder):
    ended = run(FakeServer(), "--images", folder, "--rate", 0.001, "--duration", 0.001)
    assert ended == "error: no request was due: give a longer --duration or a higher --rate"


def test_what_was_measured_is_told_when_a_picture_cannot_be_read(folder, tmp_path, capsys, monkeypatch):
    whole = (folder / "0.png").read_bytes()

    class Failing:
        typical_bytes = 600 << 20  # only one fits in memory, so that the others are made while the load is on

        def get(self, number: int, variant: int) -> Picture:
            if number > 2:
                raise OSError("picture 3 has gone")
            return Picture(whole, "image/png")

    monkeypatch.setattr("owl3_jax.cli.serve_bench_flags.FolderPictures", lambda folder, seed: Failing())
    report = tmp_path / "report.json"
    assert run(FakeServer(), "--images", folder, "--json", report) == "error: picture 3 has gone"
    assert "answered" in capsys.readouterr().out and json.loads(report.read_text())["complete"] is False


def test_ctrl_c_prints_what_there_is(folder, tmp_path):
    answered, report = threading.Event(), tmp_path / "report.json"

    async def answer_two(request: web.Request, body: dict) -> web.StreamResponse:
        if len(server.bodies) > 2:
            answered.set()
            await asyncio.Event().wait()
        return await answer_shortly(request, body)

    server = FakeServer(answer_two)
    with serving_beside(server) as url:
        command = [sys.executable, "-m", "owl3_jax", "serve-bench", url, "--images", folder, "--json", report]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert answered.wait(120)
        process.send_signal(signal.SIGINT)
        printed, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "2 of 2" in printed and "1 requests under way were given up" in printed and "Traceback" not in errors
    read = json.loads(report.read_text())
    assert read["complete"] is False and len(read["runs"][0]["requests"]) == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--rate", "0"], "--rate must be above 0"),
        (["--rate", "nan"], "--rate must be above 0"),
        (["--concurrency", "0"], "--concurrency must be above 0"),
        (["--rate", "1", "--concurrency", "2"], "give either --rate or --concurrency"),
        (["--rate", "1", "--compare-sequential"], "--compare-sequential goes with --concurrency"),
        (["--images-per-request", "x"], "is no number of images"),
        (["--image-size", "0x9"], "--image-size must be WIDTHxHEIGHT"),
        (["--shared-images", "2"], "--shared-images must be from 0 to 1"),
        (["--turns", "0"], "--turns must be at least 1"),
        (["--seed", "-1"], "--seed must not be negative"),
        (["--extra-body", "{"], "--extra-body is not JSON"),
        (["--extra-body", "[]"], "--extra-body must be an object"),
        (["--extra-body", '{"stream": false}'], "--extra-body must not set stream"),
        (["--timeout", "0"], "--timeout must be above 0"),
        (["--json", "/proc/version/report.json"], "is not a folder"),
        (["--plot", "/"], "is a folder"),
    ],
)
def test_a_wrong_command_line_exits_with_2_and_says_why(flags, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["serve-bench", "http://127.0.0.1:9", *flags])
    words = [word for word in capsys.readouterr().err.split() if word != "│"]  # tyro draws a frame
    assert message in " ".join(words)


def test_it_needs_no_jax():
    program = "import sys, owl3_jax.cli.serve_bench; print({'jax', 'flax', 'torch', 'sklearn'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout == "set()\n"
