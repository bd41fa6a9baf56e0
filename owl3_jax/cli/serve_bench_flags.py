"""The command line of `owl3 serve-bench`."""

import dataclasses
import json
import os
import re
from pathlib import Path
from typing import Annotated

import tyro

from owl3_jax.host.files import unwritable
from owl3_jax.serving.bench.bodies import RequestOptions
from owl3_jax.serving.bench.client import Endpoint
from owl3_jax.serving.bench.pictures import FolderPictures, Photographs, Pictures
from owl3_jax.serving.bench.prompts import builtin_prompts, read_prompts
from owl3_jax.serving.bench.runs import Plan
from owl3_jax.serving.bench.statistics import Limits
from owl3_jax.serving.bench.workload import ImageCounts, Workload

_KEY_VARIABLE = "OPENAI_API_KEY"
_REQUESTS, _ROUNDS = 64, 2
_OWN_FIELDS = {"model", "messages", "stream", "stream_options", "max_tokens", "temperature", "n"}
_LARGEST_SIDE = 16384
_Switch = tyro.conf.FlagCreatePairsOff


@dataclasses.dataclass(frozen=True)
class WorkloadFlags:
    """What is shown and asked."""

    images: Path | None = None  # folder of pictures to show; by default cuts of photographs that other packages carry
    image_size: str = "640x480"  # width and height of such cuts
    images_per_request: str = "1"  # N, FIRST:LAST, N,N,... or with weights, N=WEIGHT,N=WEIGHT,...
    shared_images: float = 0.0  # share of the conversations that all show the same pictures, with other questions
    prompts: Path | None = None  # JSON Lines {"prompt": "..."}, or a list of the questions of each turn
    turns: int = 1  # questions of a conversation; each request has the history of those before
    question_first: bool = False  # the question before the pictures instead of after them
    max_tokens: int = 128  # most tokens of an answer
    temperature: float = 0.0
    extra_body: str = "{}"  # JSON object of further fields of each request, such as '{"ignore_eos": true}'
    seed: int = 0  # of everything that is drawn

    def __post_init__(self) -> None:
        ImageCounts.parse(self.images_per_request)
        self.cut_size()
        self.extra_fields()
        _require(0.0 <= self.shared_images <= 1.0, f"--shared-images must be from 0 to 1, got {self.shared_images}")
        _require(self.turns >= 1, f"--turns must be at least 1, got {self.turns}")
        _require(self.max_tokens >= 1, f"--max-tokens must be at least 1, got {self.max_tokens}")
        _require(self.temperature >= 0, f"--temperature must not be negative, got {self.temperature}")
        _require(self.seed >= 0, f"--seed must not be negative, got {self.seed}")

    def cut_size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        found = re.fullmatch(r"(\d{1,6})x(\d{1,6})", self.image_size)
        size = (int(found[1]), int(found[2])) if found else (0, 0)
        valid = all(1 <= side <= _LARGEST_SIDE for side in size)
        _require(
            valid, f"--image-size must be WIDTHxHEIGHT, each up to {_LARGEST_SIDE}, such as 640x480, got {self.image_size!r}"
        )
        return size

    def extra_fields(self) -> dict[str, object]:
        """What `--extra-body` says."""
        try:
            fields = json.loads(self.extra_body)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"--extra-body is not JSON: {error}") from error
        _require(isinstance(fields, dict), f"--extra-body must be an object, {{...}}, got {self.extra_body}")
        own = ", ".join(sorted(_OWN_FIELDS & set(fields)))
        _require(not own, f"--extra-body must not set {own}: the load generator does")
        return fields

    def pictures(self) -> Pictures:
        """Raises ValueError and OSError for a folder that has none."""
        return FolderPictures(self.images, self.seed) if self.images else Photographs(self.seed, self.cut_size())

    def workload(self) -> Workload:
        """Raises ValueError and OSError for prompts that cannot be read."""
        prompts = read_prompts(self.prompts) if self.prompts else builtin_prompts()
        return Workload(ImageCounts.parse(self.images_per_request), prompts, self.seed, self.turns, self.shared_images)

    def options(self, model: str) -> RequestOptions:
        """Of the requests to a model."""
        return RequestOptions(model, self.max_tokens, self.temperature, self.extra_fields(), self.question_first)


@dataclasses.dataclass(frozen=True)
class LoadFlags:
    """How many ask, and when."""

    concurrency: int = 1  # clients, of which each waits for its answer before it asks again
    rate: float | None = None  # conversations that begin in a second, whether others are answered or not, instead
    requests: int | None = None  # conversations, of --turns requests each; 64 if --duration is not given either
    duration: float | None = None  # seconds after which none begins
    max_in_flight: int = 512  # most requests at once with --rate; latencies of those that wait count from their schedule
    warmup: int = 0  # conversations before the measurement
    # run the same load one request after the other too, with other pictures of the same sizes, and print the ratio of the rates
    compare_sequential: bool = False
    rounds: int | None = None  # how often each is run, in turn; 2 with --compare-sequential, else 1

    def __post_init__(self) -> None:
        for name in ("concurrency", "rate", "requests", "duration", "max_in_flight", "rounds"):
            value = getattr(self, name)
            _require(value is None or 0 < value < float("inf"), f"--{name.replace('_', '-')} must be above 0, got {value}")
        _require(self.warmup >= 0, f"--warmup must not be negative, got {self.warmup}")
        _require(self.rate is None or self.concurrency == 1, "give either --rate or --concurrency")
        _require(
            self.rate is None or not self.compare_sequential,
            "--compare-sequential goes with --concurrency: the rate of an open loop is given, not measured",
        )

    def plan(self, *, requires_answers: bool) -> Plan:
        """What is measured."""
        return Plan(
            concurrency=self.concurrency,
            rate=self.rate,
            conversations=_REQUESTS if self.requests is None and self.duration is None else self.requests,
            duration=float("inf") if self.duration is None else self.duration,
            most_at_once=self.max_in_flight,
            warm_up=self.warmup,
            rounds=self.rounds or (_ROUNDS if self.compare_sequential else 1),
            compares=self.compare_sequential,
            requires_answers=requires_answers,
        )


@dataclasses.dataclass(frozen=True)
class Flags:
    """Loads a server of vision models with real image sequences, and says how long its users wait."""

    url: tyro.conf.Positional[str]  # the server's, such as http://127.0.0.1:8000
    workload: Annotated[WorkloadFlags, tyro.conf.arg(name=""), _Switch]
    load: Annotated[LoadFlags, tyro.conf.arg(name=""), _Switch]
    model: str | None = None  # by default the first that the server names
    api_key: str | None = None  # by default that of the environment's OPENAI_API_KEY
    timeout: float = 600.0  # seconds for a whole answer
    connect_timeout: float = 10.0  # seconds for a connection
    json: Path | None = None  # file for all figures
    plot: Path | None = None  # file for a picture of them, a PNG
    slo_ttft: float | None = None  # seconds to the first token that users bear, for goodput
    slo_itl: float | None = None  # seconds between tokens that users bear, on average over an answer
    allow_errors: Annotated[bool, _Switch] = False  # exit with 0 though requests failed

    def __post_init__(self) -> None:
        self.endpoint()
        for name in ("timeout", "connect_timeout", "slo_ttft", "slo_itl"):
            value = getattr(self, name)
            _require(value is None or 0 < value < float("inf"), f"--{name.replace('_', '-')} must be above 0, got {value}")
        for name, path in {"--json": self.json, "--plot": self.plot}.items():
            problem = unwritable(path.parent) if path else None
            _require(not problem, f"{name} {path}: {problem}")
            _require(not (path and path.is_dir()), f"{name} {path} is a folder")

    def endpoint(self) -> Endpoint:
        """The server."""
        key = self.api_key if self.api_key is not None else os.environ.get(_KEY_VARIABLE)
        return Endpoint(self.url, key, self.timeout, self.connect_timeout)

    def limits(self) -> Limits:
        """Of goodput."""
        return Limits(self.slo_ttft, self.slo_itl)

    def settings(self) -> dict[str, object]:
        """All of them but the key, as JSON can hold them."""
        flags = dataclasses.asdict(self) | {"api_key": None}
        return json.loads(json.dumps(flags, default=str))


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
