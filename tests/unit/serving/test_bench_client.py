"""What becomes of requests: answers, refusals, broken streams, silence; and the two kinds of load."""

import asyncio
import dataclasses
import itertools
import socket
import time

import pytest
from aiohttp import web

from owl3_jax.serving.bench.bodies import Preparer, RequestOptions, Stock
from owl3_jax.serving.bench.client import Client, Endpoint, Reply, ServerError
from owl3_jax.serving.bench.load import Talk, closed_loop, open_loop, poisson_arrivals
from owl3_jax.serving.bench.pictures import Picture
from owl3_jax.serving.bench.prompts import builtin_prompts
from owl3_jax.serving.bench.record import Run
from owl3_jax.serving.bench.workload import ImageCounts, Workload
from tests.unit.serving.bench_server import DONE, FakeServer, answer_shortly, chunk, event, question_of, serving, stream, usage

OPTIONS = RequestOptions("owl", max_tokens=5, temperature=0.0)
BODY = OPTIONS.body([{"role": "user", "content": "What?"}])


def ask(server: FakeServer, body: bytes = BODY, **endpoint) -> Reply:
    async def one() -> Reply:
        async with serving(server) as url, Client(Endpoint(url, **endpoint)) as client:
            return await client.ask(body)

    return asyncio.run(one())


def replying(*parts: bytes) -> FakeServer:
    return FakeServer(lambda request, body: stream(request, parts))


def test_an_answer_is_read_to_its_end():
    server = FakeServer()
    reply = ask(server, api_key="secret")
    assert (reply.status, reply.error, "".join(reply.answer.texts)) == (200, None, "One two three.")
    assert reply.answer.finish_reason == "stop" and reply.answer.output_tokens == 3
    assert reply.sent < reply.answer.times[0] <= reply.answer.times[-1] <= reply.ended
    assert server.headers[0]["Authorization"] == "Bearer secret"


def test_a_character_may_be_cut_between_packets():
    whole = chunk("🦉") + DONE
    cut = whole.index("🦉".encode()) + 2
    assert ask(replying(whole[:cut], whole[cut:])).answer.texts == ["🦉"]


def test_each_piece_has_its_own_time():
    async def slowly(request: web.Request, body: dict) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for part in (chunk("a"), chunk("b"), chunk("c")):
            await response.write(part)
            await asyncio.sleep(0.02)
        await response.write(DONE)
        return response

    first, second, third = ask(FakeServer(slowly)).answer.times
    assert second - first > 0.01 and third - second > 0.01


@pytest.mark.parametrize(
    ("status", "content", "message"),
    [
        (429, '{"error": {"message": "too many"}}', "too many"),
        (503, '{"detail": "drained"}', '{"detail": "drained"}'),
        (500, "Traceback\n\x1b[31mred", "Traceback  [31mred"),
        (307, "", ""),
    ],
)
def test_a_refusal_is_counted_by_its_status(status, content, message):
    async def refuse(request: web.Request, body: dict) -> web.Response:
        return web.Response(status=status, text=content, headers={"Location": "http://127.0.0.1:9/"})

    reply = ask(FakeServer(refuse))
    assert (reply.status, reply.error, reply.message) == (status, f"http_{status}", message)


def test_only_the_beginning_of_an_endless_refusal_is_read():
    async def refuse(request: web.Request, body: dict) -> web.StreamResponse:
        response = web.StreamResponse(status=400)
        await response.prepare(request)
        while True:
            await response.write(b"x" * 65536)

    reply = ask(FakeServer(refuse))
    assert (reply.error, reply.message) == ("http_400", "x" * 300)


@pytest.mark.parametrize(
    ("parts", "kind"),
    [
        ([chunk("a")], "cut_off"),
        ([], "cut_off"),
        ([b"data: nonsense\n\n"], "protocol"),
        ([b"data: \xff\n\n"], "protocol"),
        ([chunk("a"), event({"error": {"message": "out of pages"}}), DONE], "server_error"),
    ],
)
def test_a_broken_stream_is_counted_by_its_kind(parts, kind):
    reply = ask(replying(*parts))
    assert (reply.status, reply.error) == (200, kind) and reply.message


def test_what_is_no_stream_is_refused():
    async def at_once(request: web.Request, body: dict) -> web.Response:
        return web.json_response({"choices": []})

    reply = ask(FakeServer(at_once))
    assert (reply.error, reply.message) == ("protocol", "the answer is application/json in place of text/event-stream")


def test_a_connection_that_breaks_is_counted():
    async def hang_up(request: web.Request, body: dict) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(chunk("a"))
        request.transport.abort()
        return response

    assert ask(FakeServer(hang_up)).error == "disconnected"


def test_silence_is_counted_as_a_timeout():
    async def say_nothing(request: web.Request, body: dict) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(chunk("a"))
        await asyncio.Event().wait()
        return response

    reply = ask(FakeServer(say_nothing), timeout=0.3)
    assert (reply.error, reply.message) == ("timeout", "no end within 0.3 s")


def test_a_server_that_is_not_there_is_counted():
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))  # and does not listen
        url = f"http://127.0.0.1:{unheard.getsockname()[1]}"

        async def one() -> Reply:
            async with Client(Endpoint(url)) as client:
                with pytest.raises(ServerError, match="cannot be reached"):
                    await client.first_model()
                assert await client.metrics() is None
                return await client.ask(BODY)

        assert asyncio.run(one()).error == "connection"


@pytest.mark.parametrize("models", [{}, {"data": []}, [], {"data": [{}]}])
def test_a_server_without_a_model_is_told(models):
    async def one() -> None:
        async with serving(FakeServer(models=models)) as url, Client(Endpoint(url)) as client:
            await client.first_model()

    with pytest.raises(ServerError, match="names no model; give --model"):
        asyncio.run(one())


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
def test_the_url_may_end_in_v1(suffix):
    async def both() -> tuple[str, str | None]:
        async with serving(FakeServer()) as url, Client(Endpoint(url + suffix)) as client:
            return await client.first_model(), await client.metrics()

    assert asyncio.run(both()) == ("owl", "reads_total 1\n")


@pytest.mark.parametrize("url", ["", "127.0.0.1:8000", "ftp://a", "http://", "http://me:secret@a", "http://a?b", "http://a#b"])
def test_what_is_no_url_of_a_server_is_refused(url):
    with pytest.raises(ValueError, match="URL"):
        Endpoint(url)


def test_a_key_is_not_shown():
    assert "secret" not in repr(Endpoint("http://a", "secret"))


class NoPictures:
    """One that is no picture, for a server that looks at none."""

    typical_bytes = 4

    def get(self, number: int, variant: int) -> Picture:
        return Picture(b"%d" % number, "image/jpeg")


@dataclasses.dataclass
class Loaded:
    """What a load led to."""

    run: Run
    settled: int


def load(server: FakeServer, conversations: int, hold, turns: int = 1) -> Loaded:
    """Holds conversations by `hold(stock, talk)`."""

    async def go() -> Loaded:
        drawn = Workload(ImageCounts.parse("1"), builtin_prompts(), turns=turns)
        settled: list[int] = []
        async with serving(server) as url, Client(Endpoint(url)) as client:
            run = Run("load", 0.0)
            talk = Talk(client, OPTIONS, run, time.perf_counter(), settled.append)
            with Stock(itertools.islice(drawn.conversations(), conversations), Preparer(NoPictures(), 0, OPTIONS)) as stock:
                await hold(stock, talk)
            return Loaded(run, sum(settled))

    return asyncio.run(go())


def test_a_closed_loop_has_so_many_requests_at_once_and_never_more():
    together = asyncio.Barrier(4)  # of which each round needs four requests that wait at the same time

    async def wait_for_others(request: web.Request, body: dict) -> web.StreamResponse:
        await together.wait()
        return await answer_shortly(request, body)

    server = FakeServer(wait_for_others)
    loaded = load(server, 12, lambda stock, talk: closed_loop(stock, talk, 4))
    assert (server.most, len(loaded.run.records), loaded.settled, loaded.run.under_way) == (4, 12, 12, 0)
    assert all(record.scheduled == record.sent and not record.error for record in loaded.run.records)


def test_a_closed_loop_begins_nothing_after_its_time():
    loaded = load(FakeServer(), 5, lambda stock, talk: closed_loop(stock, talk, 2, duration=0.0))
    assert loaded.run.records == []


def test_an_open_loop_keeps_its_schedule_though_no_request_is_answered():
    arrivals = [0.0, 0.01, 0.02, 0.03, 0.04]
    arrived = asyncio.Barrier(len(arrivals))  # an answer comes only after all requests have

    async def stall(request: web.Request, body: dict) -> web.StreamResponse:
        await arrived.wait()
        return await answer_shortly(request, body)

    server = FakeServer(stall)
    loaded = load(server, 9, lambda stock, talk: open_loop(stock, talk, iter(arrivals), most_at_once=100))
    scheduled = sorted(record.scheduled for record in loaded.run.records)
    assert [time - scheduled[0] for time in scheduled] == pytest.approx(arrivals)
    assert server.most == 5 and all(record.sent >= record.scheduled for record in loaded.run.records)


def test_latencies_of_an_open_loop_count_what_a_stall_kept_waiting():
    """One request at a time, each 0.05 s long: five that come together wait for each other, and all of it is charged."""

    async def slowly(request: web.Request, body: dict) -> web.StreamResponse:
        await asyncio.sleep(0.05)
        return await answer_shortly(request, body)

    server = FakeServer(slowly)
    loaded = load(server, 5, lambda stock, talk: open_loop(stock, talk, iter([0.0] * 5), most_at_once=1))
    first_tokens = [record.time_to_first for record in loaded.run.records]
    assert server.most == 1
    assert all(time >= 0.05 * place for place, time in enumerate(first_tokens, start=1)), first_tokens


def test_an_open_loop_ends_with_its_conversations():
    loaded = load(FakeServer(), 3, lambda stock, talk: open_loop(stock, talk, itertools.repeat(0.0), most_at_once=10))
    assert len(loaded.run.records) == 3


def test_arrivals_have_the_rate_and_follow_the_seed():
    arrivals = list(poisson_arrivals(rate=50.0, duration=40.0, seed=1))
    assert arrivals == list(poisson_arrivals(50.0, 40.0, 1)) == sorted(arrivals)
    assert 1800 < len(arrivals) < 2200 and arrivals[0] > 0 and arrivals[-1] < 40.0
    gaps = [later - earlier for earlier, later in itertools.pairwise(arrivals)]
    assert 0.9 < len(gaps) * sum(gap**2 for gap in gaps) / sum(gaps) ** 2 / 2 < 1.1  # of exponential gaps: 1
    assert arrivals[:9] != list(poisson_arrivals(50.0, 40.0, 2))[:9]


def test_a_follow_up_question_has_the_history():
    server = FakeServer()
    loaded = load(server, 2, lambda stock, talk: closed_loop(stock, talk, 1), turns=3)
    assert [(record.conversation, record.turn) for record in loaded.run.records] == list(itertools.product(range(2), range(3)))
    first, second, third = server.bodies[:3]
    assert [message["role"] for message in third["messages"]] == ["user", "assistant", "user", "assistant", "user"]
    assert third["messages"][:3] == second["messages"] and second["messages"][:1] == first["messages"]
    assert third["messages"][1]["content"] == "One two three."
    assert len({question_of(body) for body in server.bodies[:3]}) == 3


def test_a_failure_ends_a_conversation_and_no_other():
    async def refuse_second_turns(request: web.Request, body: dict) -> web.StreamResponse:
        if len(body["messages"]) == 1:
            return await answer_shortly(request, body)
        return web.Response(status=500)

    loaded = load(FakeServer(refuse_second_turns), 2, lambda stock, talk: closed_loop(stock, talk, 1), turns=4)
    assert [record.error for record in loaded.run.records] == [None, "http_500"] * 2
    assert loaded.settled == 8, "a progress bar would not come to its end"


def test_usage_that_a_server_does_not_tell_is_counted_by_pieces():
    loaded = load(replying(chunk("a"), chunk("b"), DONE), 1, lambda stock, talk: closed_loop(stock, talk, 1))
    assert (loaded.run.records[0].output_tokens, loaded.run.records[0].prompt_tokens) == (2, None)


def test_usage_that_a_server_tells_goes_into_the_record():
    loaded = load(replying(chunk("abc"), usage(700, 3, 640), DONE), 1, lambda stock, talk: closed_loop(stock, talk, 1))
    (record,) = loaded.run.records
    assert (record.prompt_tokens, record.output_tokens, record.cached_tokens, record.images) == (700, 3, 640, 1)
