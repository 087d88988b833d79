"""What monitors read: /health, /ready and /metrics over a scripted service."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette
from starlette.testclient import TestClient

from edgepp.coordinator.ended_answer import EndedAnswer
from edgepp.engine.ring import StageInfo
from edgepp.engine.timing import Recovery, StageTimes, Timing
from edgepp.http_api import health, metrics
from edgepp.layer_range import LayerRange
from tests.builders.scripted_service import ScriptedService

LOADING = {
    "reason": "the layers are being loaded",
    "loading": {"state": "loading", "node": "mini", "progress": 0.4, "eta_seconds": 7.4},
    "stages": [{"index": 0, "node": "mini", "progress": 0.4, "weight_bytes": None}],
}
READY: dict[str, Any] = {
    "loading": None,
    "context": 4096,
    "max_sequences": 2,
    "plan_version": 1,
    "uptime_s": 5.0,
    "answers": {"under_way": 3, "done": 9},
    "engine": {
        "live": 2,
        "waiting": 1,
        "preempted": 4,
        "held_positions": 1024,
        "kept_positions": 1024,
        "recoveries": {"copies": 2, "prefill": 1},
    },
    "nodes": [{"name": "mini", "state": "ready", "rtt_s": 0.002, "memory_free_bytes": 1 << 30}],
    "stages": [
        {"index": 0, "node": "mini", "progress": 1.0, "dropped": 2, "frames": 30, "hop_s": 0.001}
        | {"queue_s": 0.25, "received_bytes": 4096, "sent_bytes": 2048, "reconnects": 1}
    ],
}
LOSS = Recovery("copies", 1.5)
STAGE = StageInfo(0, LayerRange(0, 30), "mini", "127.0.0.1:1", 5, "onnx", "cpu", 512, 4096, 0.1, 0.1)


def client(state: dict[str, Any], address: str = "127.0.0.1") -> TestClient:
    service = ScriptedService([], state=state)
    routes = [*health.routes(service), *metrics.routes(service)]
    for ended in (
        EndedAnswer(
            "stop",
            100,
            5,
            Timing(0.0, 0.5, 1.5, 5, reused=80, stages=[StageTimes(0.1, 0.2, 0.3)], recoveries=[LOSS]),
            (STAGE,),
            2.0,
            (0.2, 0.3),
        ),
        EndedAnswer("error", 0, 0, Timing(0.0), (), 0.1),
    ):
        service.observers[0](ended)
    return TestClient(Starlette(routes=routes), client=(address, 5000))


@pytest.mark.parametrize("path", ["/health", "/ready"])
def test_a_cluster_that_can_answer_is_healthy(path: str) -> None:
    response = client(READY).get(path)
    assert (response.status_code, response.json()) == (200, {"status": "ok", "model": "smollm2-135m"})


def test_a_cluster_that_loads_says_how_far_it_is_and_when_to_ask_again() -> None:
    response = client(LOADING).get("/health")
    assert response.status_code == 503
    assert response.headers["retry-after"] == "7"
    assert response.json()["reason"] == "the layers are being loaded"
    assert response.json()["loading"]["progress"] == 0.4


@pytest.mark.parametrize("state", [READY, LOADING])
def test_a_stranger_learns_only_whether_it_is_healthy(state: dict[str, Any]) -> None:
    assert list(client(state, "192.0.2.7").get("/health").json()) == ["status"]


def samples(text: str) -> dict[tuple[str, str], float]:
    return {
        (
            sample.name,
            json.dumps({k: v for k, v in sample.labels.items() if k != "model_name"}, sort_keys=True),
        ): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_metrics_count_answers_stages_and_the_prefix_cache() -> None:
    found = samples(client(READY).get("/metrics").text)
    for name, labels, value in [
        ("edgepp_request_success_total", '{"finished_reason": "stop"}', 1),
        ("edgepp_request_failure_total", "{}", 1),
        ("edgepp_prompt_tokens_total", "{}", 100),
        ("edgepp_generation_tokens_total", "{}", 5),
        ("edgepp_prefix_cache_hits_total", "{}", 80),
        ("edgepp_prefix_cache_queries_total", "{}", 100),
        ("edgepp_time_to_first_token_seconds_count", "{}", 1),
        ("edgepp_inter_token_latency_seconds_sum", "{}", 0.5),
        ("edgepp_stage_compute_seconds_total", '{"node": "mini", "phase": "prefill", "stage": "0"}', 0.1),
        ("edgepp_stage_wire_seconds_total", '{"node": "mini", "stage": "0"}', 0.3),
        ("edgepp_stage_dropped_frames_total", '{"node": "mini", "stage": "0"}', 2),
        ("edgepp_stage_queue_seconds_total", '{"node": "mini", "stage": "0"}', 0.25),
        ("edgepp_stage_received_bytes_total", '{"node": "mini", "stage": "0"}', 4096),
        ("edgepp_stage_sent_bytes_total", '{"node": "mini", "stage": "0"}', 2048),
        ("edgepp_stage_reconnects_total", '{"node": "mini", "stage": "0"}', 1),
        ("edgepp_recoveries_total", '{"how": "copies"}', 2),
        ("edgepp_recoveries_total", '{"how": "log"}', 0),
        ("edgepp_recovery_seconds_sum", "{}", 1.5),
        ("edgepp_recovery_seconds_count", "{}", 1),
        ("edgepp_node_rtt_seconds", '{"node": "mini"}', 0.002),
        ("edgepp_num_requests_running", "{}", 2),
        ("edgepp_kv_cache_usage_ratio", "{}", 0.25),
        ("edgepp_ready", "{}", 1),
    ]:
        assert found[name, labels] == pytest.approx(value), name
    assert not [name for name, _ in found if name.startswith("vllm")]
    assert not [name for name, _ in found if name.endswith("_created")]


def test_metrics_have_names_of_vllm_on_request() -> None:
    found = samples(client(READY).get("/metrics?aliases=vllm").text)
    assert found["vllm:num_requests_running", "{}"] == 2
    assert found["vllm:prompt_tokens_total", "{}"] == 100
    assert found["vllm:kv_cache_usage_perc", "{}"] == 0.25
    assert found["vllm:time_to_first_token_seconds_bucket", '{"le": "0.5"}'] == 1
    assert found["edgepp_num_requests_running", "{}"] == 2


def test_metrics_are_there_while_the_cluster_loads() -> None:
    found = samples(client(LOADING).get("/metrics").text)
    assert (found["edgepp_ready", "{}"], found["edgepp_load_progress_ratio", "{}"]) == (0, 0.4)


def test_every_metric_is_documented() -> None:
    text = client(READY).get("/metrics").text
    emitted = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE ")}
    document = Path(__file__).parents[3] / "docs" / "metrics.md"
    assert set(re.findall(r"\bedgepp_\w+", document.read_text())) == emitted
