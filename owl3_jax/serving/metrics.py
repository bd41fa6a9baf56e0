"""What /metrics shows: numbers of requests, of their times, and of the engine, in Prometheus' form."""

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from owl3_jax.serving.generation import Load, ServingEngine

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
Numbers = Callable[[], Mapping[str, float]]  # counts of another part of the server, by name

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250)
_SHORT_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_IMAGES = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384)


class Metrics:
    """The server's numbers, in a registry of their own."""

    def __init__(self, engine: ServingEngine, parts: Mapping[str, Numbers]) -> None:
        """`parts`: other things that count, by name, e.g. `decoders`."""
        registry = self._registry = CollectorRegistry()
        self.requests = Counter("owl3_requests", "Requests that ended", ["route", "status"], registry=registry)
        self.errors = Counter("owl3_errors", "Requests without an answer", ["code", "status"], registry=registry)
        self.queue = Histogram(
            "owl3_queue_seconds", "From queuing to the end of the prompt", buckets=_SECONDS, registry=registry
        )
        self.first_token = Histogram(
            "owl3_time_to_first_token_seconds",
            "From a request's headers to its first token",
            buckets=_SECONDS,
            registry=registry,
        )
        self.between_tokens = Histogram(
            "owl3_time_between_tokens_seconds", "Of one answer", buckets=_SHORT_SECONDS, registry=registry
        )
        self.whole = Histogram(
            "owl3_request_seconds", "From a request's headers to the end of its answers", buckets=_SECONDS, registry=registry
        )
        self.images = Histogram("owl3_request_images", "Images of a request", buckets=_IMAGES, registry=registry)
        self.answer_tokens = Histogram(
            "owl3_request_tokens", "Tokens of a request's answers", buckets=_TOKENS, registry=registry
        )
        self.prompt_tokens = Counter("owl3_prompt_tokens", "Tokens of prompts", registry=registry)
        self.cached_tokens = Counter("owl3_prompt_tokens_cached", "Of these, there already", registry=registry)
        self.generated_tokens = Counter("owl3_generated_tokens", "Tokens that were sent to clients", registry=registry)
        self.cached_images = Counter("owl3_images_cached", "Images of prompts, there already", registry=registry)
        registry.register(_EngineCollector(engine, parts))

    def exposition(self) -> bytes:
        """The text that Prometheus reads."""
        return generate_latest(self._registry)


class _EngineCollector(Collector):
    """Asks the engine, and the other parts, when somebody asks for the metrics."""

    def __init__(self, engine: ServingEngine, parts: Mapping[str, Numbers]) -> None:
        self._engine, self._parts = engine, parts

    def collect(self) -> Iterator[Metric]:
        load = self._engine.load()
        yield GaugeMetricFamily("owl3_ready", "Whether requests are taken", value=self._engine.is_ready)
        yield GaugeMetricFamily("owl3_requests_waiting", "Answers in the queue", value=load.waiting)
        yield GaugeMetricFamily("owl3_requests_running", "Answers under way", value=load.running)
        yield _pages("owl3_image_pages", "Pages of images", _image_pages(load))
        yield CounterMetricFamily("owl3_image_pages_evicted", "Images that made room for others", value=load.pages_evicted)
        yield _pages("owl3_text_pages", "Pages of text", _text_pages(load))
        yield CounterMetricFamily("owl3_images_encoded", "Images that the vision tower read", value=load.images_encoded)
        yield CounterMetricFamily("owl3_engine_tokens", "Tokens that the engine made", value=load.tokens_generated)
        for part, numbers in self._parts.items():
            for name, value in numbers().items():
                yield GaugeMetricFamily(f"owl3_{part}_{name}", f"{name} of {part}", value=value)


def _image_pages(load: Load) -> Mapping[str, int]:
    return {"free": load.pages_free, "idle": load.pages_idle, "used": load.pages_used, "shared": load.pages_shared}


def _text_pages(load: Load) -> Mapping[str, int]:
    return {"free": load.text_pages_free, "idle": load.text_pages_idle, "used": load.text_pages_used}


def _pages(name: str, about: str, states: Mapping[str, int]) -> Metric:
    """`shared` ones are among those `used`."""
    family = GaugeMetricFamily(name, about, labels=["state"])
    for state, value in states.items():
        family.add_metric([state], value)
    return family
