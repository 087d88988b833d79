"""The model, its health and its numbers over HTTP, on a real cluster of two stages."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

import edgepp
from edgepp.engine.frontend import ModelFrontend
from edgepp.http_api.http_options import HttpOptions
from edgepp.http_api.model_text import ModelText
from edgepp.http_api.server import HttpServer
from edgepp.model.random_checkpoint import TINY
from edgepp.python_api import ServedCluster
from tests.builders.checkpoints import Checkpoints
from tests.waiting import PATIENCE_S


def with_server(model: str, work: Callable[[ServedCluster, httpx.AsyncClient], Awaitable[None]]) -> None:
    async def main() -> None:
        cluster = edgepp.serve(model, stages=2, listen="127.0.0.1:0", threads=1, context=1024)
        async with cluster, HttpServer(cluster, HttpOptions(http="127.0.0.1:0")) as server:
            await cluster.ready()
            async with httpx.AsyncClient(base_url=server.url, timeout=PATIENCE_S) as client:
                await work(cluster, client)

    asyncio.run(asyncio.wait_for(main(), 4 * PATIENCE_S))


async def metrics(client: httpx.AsyncClient) -> dict[str, float]:
    """The sum of each sample over its labels."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families((await client.get("/metrics")).text):
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, 0.0) + sample.value
    return found


def test_metrics_count_answers_over_http_and_over_the_cluster(checkpoints: Checkpoints) -> None:
    async def work(_: ServedCluster, client: httpx.AsyncClient) -> None:
        assert (await client.get("/health")).json()["status"] == "ok"
        asked: dict[str, Any] = {"prompt": "Once upon a time there was", "max_tokens": 20, "ignore_eos": True}
        first = (await client.post("/v1/completions", json=asked)).json()["usage"]
        again = (await client.post("/v1/completions", json=asked)).json()["usage"]
        async with edgepp.connect() as connection:
            other = await connection.ask("hello", edgepp.GenerateOptions(5, ignore_eos=True), raw=True).whole()
        found = await metrics(client)
        assert found["edgepp_request_success_total"] == 3
        cached = again["prompt_tokens_details"]["cached_tokens"]
        assert cached > 0
        assert found["edgepp_prefix_cache_hits_total"] == cached
        prompts = first["prompt_tokens"] + again["prompt_tokens"] + other.prompt_tokens
        assert found["edgepp_prompt_tokens_total"] == prompts
        assert found["edgepp_generation_tokens_total"] == 45
        assert found["edgepp_time_to_first_token_seconds_count"] == 3
        assert found["edgepp_stage_compute_seconds_total"] > 0
        assert found["edgepp_ready"] == 1
        assert found["edgepp_stage_reconnects_total"] == 0
        assert {"edgepp_stage_queue_seconds_total", "edgepp_stage_received_bytes_total"} <= set(found)
        assert "edgepp_stage_sent_bytes_total" in found

    with_server(str(checkpoints(TINY)), work)


def test_what_is_known_of_a_model_is_made_outside_of_the_event_loop(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = str(checkpoints(TINY)), str(checkpoints(replace(TINY, layers=6)))
    threads: list[int] = []
    made = ModelText.of

    def noted(frontend: ModelFrontend) -> ModelText:
        threads.append(threading.get_ident())
        return made(frontend)

    async def work(cluster: ServedCluster, client: httpx.AsyncClient) -> None:
        monkeypatch.setattr(ModelText, "of", noted)
        for model in (first, second):
            if model == second:
                await cluster.load(model)
            responses = await asyncio.gather(*(client.get(path) for path in ("/v1/models", "/metrics", "/health") * 3))
            assert {response.status_code for response in responses} == {200}
            assert (await client.get("/v1/models")).json()["data"][0]["id"] == model
        assert len(threads) == 2
        assert threading.get_ident() not in threads

    with_server(first, work)


def test_the_model_is_changed_over_http_and_refusals_change_nothing(checkpoints: Checkpoints) -> None:
    tiny = str(checkpoints(TINY))

    async def work(cluster: ServedCluster, client: httpx.AsyncClient) -> None:
        for name in ("no-such-model", tiny, "../tiny", "x" * 300):
            refused = await client.post("/v1/models/load", json={"model": name})
            assert refused.status_code in (400, 404), name
            assert refused.json()["error"]["message"]
        assert cluster.status["model"] == tiny
        begun = await client.post("/v1/models/load", json={"model": "smollm2-135m", "wait": False})
        assert (begun.status_code, begun.json()["status"]) == (202, "loading")
        second = await client.post("/v1/models/load", json={"model": "smollm2-135m"})
        assert second.status_code == 503
        assert "retry-after" in second.headers
        while (health := await client.get("/health")).status_code != 200 or health.json()["model"] == tiny:  # noqa: ASYNC110 - over HTTP
            await asyncio.sleep(0.1)
        assert (await client.get("/v1/models")).json()["data"][0]["id"] == "smollm2-135m"
        asked = {"model": "smollm2-135m", "messages": [{"role": "user", "content": "Say hi"}], "max_tokens": 4}
        answered = await client.post("/v1/chat/completions", json=asked)
        assert answered.status_code == 200
        assert answered.json()["choices"][0]["message"]["content"]
        done = await client.post("/v1/models/load", json={"model": "smollm2-135m:latest"})
        assert (done.status_code, done.json()["model"]) == (200, "smollm2-135m")

    with_server(tiny, work)
