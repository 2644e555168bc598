"""What Prometheus reads: requests, tokens, waiting times."""

import time
from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, Info, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from glm_int4.server.worker import PendingAnswer, Worker

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)
_TOKENS_PER_S = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


class Metrics:
    """Counters of one server, in a registry of their own; ``facts`` tell which server that is."""

    def __init__(self, facts: Mapping[str, str]) -> None:
        self.registry = CollectorRegistry()
        Info("glm_int4_build", "What runs.", registry=self.registry).info(dict(facts))
        self.requests = self._counter("requests", "Requests by route and status.", ("route", "status"))
        self.answers = self._counter("answers", "Answers by how they ended.", ("end",))
        self.prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts that were answered.")
        self.new_tokens = self._counter("new_tokens", "Tokens that the model wrote.")
        self.first_token = self._histogram("first_token_seconds", "From a request to its first token.", _SECONDS)
        self.seconds = self._histogram("answer_seconds", "From a request to the end of its answer.", _SECONDS)
        self.speed = self._histogram("answer_tokens_per_second", "Tokens per second of an answer.", _TOKENS_PER_S)

    def _counter(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
        return Counter(f"glm_int4_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"glm_int4_{name}", text, buckets=buckets, registry=self.registry)

    def watch(self, worker: Worker) -> None:
        """Tell the state of a worker too, as it is when it is asked for."""
        self.registry.register(_State(worker))

    def count_answer(self, pending: PendingAnswer, end: str) -> None:
        """Count an answer that has ended; called on the engine's thread."""
        now = time.monotonic()
        self.answers.labels(end).inc()
        self.prompt_tokens.inc(len(pending.sequence.prompt))
        self.new_tokens.inc(len(pending.sequence.ids))
        self.seconds.observe(now - pending.started)
        if pending.first_token is not None:
            self.first_token.observe(pending.first_token - pending.started)
            if len(pending.sequence.ids) > 1 and now > pending.first_token:
                self.speed.observe((len(pending.sequence.ids) - 1) / (now - pending.first_token))

    def text(self) -> bytes:
        """All figures in Prometheus' text format."""
        return generate_latest(self.registry)


class _State(Collector):
    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def collect(self) -> list[GaugeMetricFamily]:
        batcher = self._worker.batcher
        values = (
            ("running", "Answers that have a slot.", batcher.num_running),
            ("waiting", "Answers that wait for one.", self._worker.num_waiting),
            ("slots", "Answers that run at a time at most.", batcher.num_slots),
        )
        return [GaugeMetricFamily(f"glm_int4_{name}", text, value) for name, text, value in values]
