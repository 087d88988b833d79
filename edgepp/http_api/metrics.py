"""``/metrics`` for Prometheus: answers, prefix cache, stages and nodes; no prompts, no keys, no owners.

``/metrics?aliases=vllm`` has the names of vLLM's metrics too, for the dashboards that are made for them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any, get_args

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from edgepp.coordinator.ended_answer import EndedAnswer
from edgepp.engine.timing import RecoveryKind
from edgepp.errors import EdgeppError
from edgepp.http_api.model_service import ModelService
from edgepp.http_api.openai_api.errors import FORM
from edgepp.http_api.operation import Operation

PREFIX = "edgepp"
_TOKEN_S = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2, 5, 10, 30)
_FIRST_TOKEN_S = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 40, 80, 160, 320, 640, 2560)
_ANSWER_S = (0.1, 0.3, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 240, 480, 960, 1920)
_MODEL = ("model_name",)
_STAGE = (*_MODEL, "stage", "node")
_ALIASED = {
    "num_requests_running": "num_requests_running",
    "num_requests_waiting": "num_requests_waiting",
    "kv_cache_usage_ratio": "kv_cache_usage_perc",
    "prompt_tokens": "prompt_tokens",
    "generation_tokens": "generation_tokens",
    "request_success": "request_success",
    "prefix_cache_queries": "prefix_cache_queries",
    "prefix_cache_hits": "prefix_cache_hits",
    "time_to_first_token_seconds": "time_to_first_token_seconds",
    "inter_token_latency_seconds": "inter_token_latency_seconds",
    "e2e_request_latency_seconds": "e2e_request_latency_seconds",
    "request_queue_time_seconds": "request_queue_time_seconds",
    "request_prefill_time_seconds": "request_prefill_time_seconds",
    "request_decode_time_seconds": "request_decode_time_seconds",
}
"""Names of vLLM's metrics by edgepp's names."""


def routes(service: ModelService) -> list[BaseRoute]:
    """The route over ``service``, whose answers are counted from now on."""
    answers = AnswerMetrics(service)
    service.observe(answers.add)

    async def metrics(request: Request) -> Response:
        aliases = "vllm" in request.query_params.getlist("aliases")
        return Response(exposition(service, answers, aliases=aliases), 200, media_type=CONTENT_TYPE_LATEST)

    return [
        Operation("GET", "/metrics", metrics, FORM, summary="Metrics for Prometheus; ?aliases=vllm adds its names.")
    ]


class AnswerMetrics:
    """Counters and histograms of answers that have ended, of all askers."""

    def __init__(self, service: ModelService) -> None:
        self._service = service
        registry = self.registry = CollectorRegistry()

        def counter(name: str, text: str, labels: Iterable[str] = _MODEL) -> Counter:
            return Counter(f"{PREFIX}_{name}", text, tuple(labels), registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"{PREFIX}_{name}", text, _MODEL, registry=registry, buckets=buckets)

        self._success = counter("request_success", "Answers that ended.", (*_MODEL, "finished_reason"))
        self._failed = counter("request_failure", "Answers that an error ended.")
        self._prompt = counter("prompt_tokens", "Tokens of prompts.")
        self._generated = counter("generation_tokens", "Tokens of answers.")
        self._queries = counter("prefix_cache_queries", "Tokens of prompts that were looked up in the prefix cache.")
        self._hits = counter("prefix_cache_hits", "Tokens of prompts that needed no computing.")
        self._guessed = counter("speculative_tokens", "Tokens that were guessed before they were sampled.")
        self._right = counter("speculative_tokens_right", "Guessed tokens that were right.")
        self._compute = counter("stage_compute_seconds", "Seconds of computing, per stage.", (*_STAGE, "phase"))
        self._wire = counter(
            "stage_wire_seconds",
            "Seconds of decode steps outside of computing (wire, codec and queues), divided by the measured hops.",
            _STAGE,
        )
        self._ttft = histogram("time_to_first_token_seconds", "From question to first token.", _FIRST_TOKEN_S)
        self._gap = histogram("inter_token_latency_seconds", "Between two pieces of text.", _TOKEN_S)
        self._e2e = histogram("e2e_request_latency_seconds", "From question to end.", _ANSWER_S)
        self._queue = histogram("request_queue_time_seconds", "From question to engine.", _ANSWER_S)
        self._prefill = histogram("request_prefill_time_seconds", "From engine to first token.", _ANSWER_S)
        self._recovery = histogram(
            "recovery_seconds",
            "From a loss of stages to the next token of a request, per request that survived.",
            _ANSWER_S,
        )
        self._decode = histogram("request_decode_time_seconds", "From first token to last.", _ANSWER_S)

    def add(self, answer: EndedAnswer) -> None:
        """Count an answer. Called in the thread that read it."""
        with suppress(EdgeppError):  # the cluster was closed during the answer
            self._add(answer, self._service.model.name)

    def _add(self, answer: EndedAnswer, model: str) -> None:
        timing = answer.timing
        if answer.outcome == "error":
            self._failed.labels(model).inc()
        else:
            self._success.labels(model, answer.outcome).inc()
        self._e2e.labels(model).observe(answer.e2e_s)
        for metric, amount in (
            (self._prompt, answer.prompt_tokens),
            (self._generated, answer.tokens),
            (self._queries, answer.prompt_tokens),
            (self._hits, timing.reused),
            (self._guessed, timing.guessed),
            (self._right, timing.right),
        ):
            metric.labels(model).inc(amount)
        if timing.tokens:
            self._ttft.labels(model).observe(timing.ttft_s)
            self._queue.labels(model).observe(timing.queued_s)
            self._prefill.labels(model).observe(max(0.0, timing.ttft_s - timing.queued_s))
            self._decode.labels(model).observe(timing.last_token_s - timing.first_token_s)
        for recovery in timing.recoveries:
            self._recovery.labels(model).observe(recovery.pause_s)
        for gap_s in answer.gaps_s:
            self._gap.labels(model).observe(gap_s)
        for stage, times in zip(answer.stages, timing.stages, strict=False):
            at = (model, str(stage.index), stage.node)
            self._compute.labels(*at, "prefill").inc(times.prefill_s)
            self._compute.labels(*at, "decode").inc(times.decode_s)
            self._wire.labels(*at).inc(times.wire_s)


def exposition(service: ModelService, answers: AnswerMetrics, *, aliases: bool = False) -> bytes:
    """All metrics as text; with ``aliases`` also under vLLM's names."""
    families = [*answers.registry.collect(), *_families(service)]
    if aliases:
        families += [alias for family in families for alias in _aliases(family)]
    return generate_latest(_Fixed(families))


class _Fixed(CollectorRegistry):
    """A registry of given families, as ``generate_latest`` wants one."""

    def __init__(self, families: list[Metric]) -> None:
        super().__init__()
        self.register(_Given(families))


class _Given(Collector):
    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        """The families, without the times at which their counters were made."""
        for family in self._families:
            family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
            yield family

    def describe(self) -> Iterable[Metric]:
        return []


def _families(service: ModelService) -> Iterator[Metric]:
    """Metrics that are read from the state of the cluster."""
    state, model = service.status(), service.model
    label = [model.name]
    engine: Mapping[str, Any] = state.get("engine") or {}
    loading = state.get("loading")
    positions = state.get("context", model.context) * state.get("max_sequences", 1)
    used = engine.get("held_positions", 0) + engine.get("kept_positions", 0)
    info = {"model_name": model.name, "family": model.family, "quantization": model.quantization}
    gauge = GaugeMetricFamily(f"{PREFIX}_model_info", "The model that is served.", labels=list(info))
    gauge.add_metric(list(info.values()), 1)
    yield gauge
    for name, text, value in (
        ("ready", "Whether the cluster can answer.", 0 if loading else 1),
        ("load_progress_ratio", "The loaded part of the model.", loading["progress"] if loading else 1),
        ("context_tokens", "Tokens that prompt and answer may have together.", model.context),
        ("num_requests_running", "Requests that hold KV positions.", engine.get("live", 0)),
        ("num_requests_waiting", "Requests that wait for KV positions.", engine.get("waiting", 0)),
        ("num_answers", "Answers under way, those that wait for the cluster included.", _under_way(state)),
        ("kv_cache_positions", "KV positions of all requests together.", positions),
        ("kv_cache_usage_ratio", "The part of the KV positions that is used or kept.", used / max(1, positions)),
        ("prefix_cache_kept_positions", "KV positions kept for later prompts.", engine.get("kept_positions", 0)),
        ("plan_version", "How many plans there have been.", state.get("plan_version", 0)),
        ("uptime_seconds", "Seconds since the coordinator began.", state.get("uptime_s", 0)),
    ):
        gauge = GaugeMetricFamily(f"{PREFIX}_{name}", text, labels=_MODEL)
        gauge.add_metric(label, value)
        yield gauge
    yield _counter("preemptions", "Requests that lost their KV positions.", label, engine.get("preempted", 0))
    yield _recoveries(model.name, engine)
    yield from _stage_families(model.name, state.get("stages", ()))
    yield from _node_families(model.name, state.get("nodes", ()))


def _recoveries(model: str, engine: Mapping[str, Any]) -> Metric:
    counter = CounterMetricFamily(
        f"{PREFIX}_recoveries",
        "Requests that went on over other stages, after a loss or a move, by how their keys and values were rebuilt.",
        labels=(*_MODEL, "how"),
    )
    counted: Mapping[str, int] = engine.get("recoveries") or {}
    for how in get_args(RecoveryKind):
        counter.add_metric([model, how], counted.get(how, 0))
    return counter


def _counter(name: str, text: str, label: list[str], value: float) -> CounterMetricFamily:
    family = CounterMetricFamily(f"{PREFIX}_{name}", text, labels=_MODEL)
    family.add_metric(label, value)
    return family


_STAGE_GAUGES = {
    "hop_s": ("stage_hop_seconds", "Seconds of one message on the way to the stage."),
    "link_bytes_per_s": ("stage_link_bytes_per_second", "Measured rate of the link to the stage."),
    "stage_s": ("stage_step_seconds", "Mean seconds of computing per token, of the last answer."),
    "wire_s": ("stage_step_wire_seconds", "Mean seconds on the way per token, of the last answer."),
    "sequences": ("stage_sequences", "KV caches on the stage."),
    "kv_bytes": ("stage_kv_bytes", "Bytes of keys and values."),
    "weight_bytes": ("stage_weight_bytes", "Bytes of weights."),
    "resident_bytes": ("stage_resident_bytes", "Memory of the stage process after loading."),
    "clock_error_s": ("stage_clock_error_seconds", "Seconds by which times of the stage in traces may be wrong."),
    "progress": ("stage_load_progress_ratio", "The loaded part of the stage's layers."),
}
_STAGE_COUNTERS = {
    "frames": ("stage_frames", "Frames that the stage has computed."),
    "dropped": ("stage_dropped_frames", "Frames that the stage has dropped, such as those of freed sequences."),
    "void": ("stage_void_frames", "Frames that the stage did not compute to the end, as of wrong guesses."),
    "queue_s": (
        "stage_queue_seconds",
        "Seconds that steps waited at the stage for earlier steps, since the stages were joined; derived by the"
        " coordinator from sending times, computing times and the measured links.",
    ),
    "received_bytes": ("stage_received_bytes", "Bytes received on the link into the stage, since its process began."),
    "sent_bytes": ("stage_sent_bytes", "Bytes sent on the link to the next stage, or back, since its process began."),
    "reconnects": (
        "stage_reconnects",
        "Connections made again: from the coordinator to the stage, and from the stage to the next one.",
    ),
}


def _stage_families(model: str, stages: Iterable[Mapping[str, Any]]) -> Iterator[Metric]:
    stages = list(stages)
    for kind, table in ((GaugeMetricFamily, _STAGE_GAUGES), (CounterMetricFamily, _STAGE_COUNTERS)):
        for key, (name, text) in table.items():
            family = kind(f"{PREFIX}_{name}", text, labels=_STAGE)
            for stage in stages:
                if stage.get(key) is not None:
                    family.add_metric([model, str(stage["index"]), stage["node"]], stage[key])
            yield family


def _node_families(model: str, nodes: Iterable[Mapping[str, Any]]) -> Iterator[Metric]:
    nodes = list(nodes)
    states = GaugeMetricFamily(f"{PREFIX}_node_up", "Whether the node answers.", labels=(*_MODEL, "node", "state"))
    rtt = GaugeMetricFamily(f"{PREFIX}_node_rtt_seconds", "Round trip to the node.", labels=(*_MODEL, "node"))
    free = GaugeMetricFamily(f"{PREFIX}_node_memory_free_bytes", "Free memory.", labels=(*_MODEL, "node"))
    for node in nodes:
        up = node["state"] in ("joined", "ready")
        states.add_metric([model, node["name"], node["state"]], int(up))
        rtt.add_metric([model, node["name"]], node["rtt_s"])
        free.add_metric([model, node["name"]], node["memory_free_bytes"])
    yield from (states, rtt, free)


def _under_way(state: Mapping[str, Any]) -> int:
    answers: Mapping[str, Any] = state.get("answers") or {}
    return int(answers.get("under_way", 0))


def _aliases(family: Metric) -> Iterator[Metric]:
    name = _ALIASED.get(family.name.removeprefix(f"{PREFIX}_"))
    if name is None:
        return
    alias = Metric(f"vllm:{name}", family.documentation, family.type)
    alias.samples = [sample._replace(name=sample.name.replace(family.name, alias.name, 1)) for sample in family.samples]
    yield alias
