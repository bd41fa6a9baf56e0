"""POST /v1/chat/completions, from the headers of a request to the last byte of its answers."""

import contextlib
import dataclasses

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from owl3_jax.serving.answers import Chunks, Spelling, Whole
from owl3_jax.serving.api_settings import ApiSettings
from owl3_jax.serving.auth import ApiKeys
from owl3_jax.serving.bodies import Bodies
from owl3_jax.serving.completions import Answers, start_answers
from owl3_jax.serving.errors import ApiError, invalid, unavailable
from owl3_jax.serving.gate import Gate
from owl3_jax.serving.generation import ServingEngine
from owl3_jax.serving.metrics import Metrics
from owl3_jax.serving.parse import Wanted, parse_request
from owl3_jax.serving.preparing import DecodedPrompt, Preparer
from owl3_jax.serving.record import Record, record_of
from owl3_jax.serving.streaming import EventStream, client_gone, while_connected


@dataclasses.dataclass(frozen=True)
class Chat:
    """Answers requests with an engine."""

    engine: ServingEngine
    preparer: Preparer
    spelling: Spelling
    settings: ApiSettings
    keys: ApiKeys
    gate: Gate
    metrics: Metrics
    bodies: Bodies

    async def respond(self, request: Request) -> Response:
        """The response, which is sent while it is made if that is wanted. Raises ApiError."""
        record = record_of(request)
        record.client = self.keys.client_of(request.headers) or (request.client.host if request.client else "")
        try:
            answers, wanted = await self._start(request, record)
        except ClientDisconnect:
            raise client_gone() from None
        if wanted.is_stream:
            return await self._streamed(request, record, answers, wanted)
        return await self._whole(request, answers)

    async def _start(self, request: Request, record: Record) -> tuple[Answers, Wanted]:
        """Queues what the request wants; its body and its media's bytes are forgotten then."""
        async with contextlib.AsyncExitStack() as stack:
            async with self.gate.arrive():
                if not self.engine.is_ready:
                    raise unavailable("the model is not ready yet")
                body = await stack.enter_async_context(self.bodies.read(request, record.client))
            wanted = parse_request(body, self.settings.sampling)
            self._check(wanted)
            record.is_stream, record.ignored = wanted.is_stream, wanted.ignored
            with self.gate.prepare():
                prompt = await while_connected(request.receive, self.preparer.prepare(wanted.turns, record.client))
        return self._queue(record, wanted, prompt), dataclasses.replace(wanted, turns=())

    def _check(self, wanted: Wanted) -> None:
        require_model(wanted.model, self.settings)
        if wanted.answers > self.settings.max_answers:
            raise invalid("n", f"n is {wanted.answers}; this server gives at most {self.settings.max_answers} answers at once")

    def _queue(self, record: Record, wanted: Wanted, prompt: DecodedPrompt) -> Answers:
        settings = self.settings
        return start_answers(
            self.engine, self.metrics, record, wanted, prompt, model=settings.models[0], positions=settings.positions
        )

    async def _whole(self, request: Request, answers: Answers) -> Response:
        try:
            whole = Whole(answers.asked, answers.tally, self.spelling)
            await while_connected(request.receive, _collect(answers, whole))
            return Response(whole.completion().model_dump_json(), media_type="application/json")
        finally:
            answers.close()

    async def _streamed(self, request: Request, record: Record, answers: Answers, wanted: Wanted) -> Response:
        """Waits for the first event, so that a failure before it has a status of its own."""
        try:
            chunks = Chunks(answers.asked, answers.tally, self.spelling, include_usage=wanted.include_usage)
            first = await while_connected(request.receive, answers.take(self.settings.ping))
            return EventStream(answers, chunks, first, record, self.settings.ping)
        except BaseException:
            answers.close()
            raise


async def _collect(answers: Answers, whole: Whole) -> None:
    while not answers.tally.is_complete:
        for number, event in await answers.take():
            whole.add(number, event)


def require_model(name: str, settings: ApiSettings) -> None:
    """Raises ApiError (404) for another model than the server's."""
    if name not in settings.models:
        message = f"there is no model of this name; this server has {', '.join(settings.models)}"
        raise ApiError(404, "model_not_found", message, param="model")
