"""`edgepp serve` that is stopped while it answers; the loopback test of the same name has every API."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.multiprocess.http_cluster import HttpCluster, serving_http
from tests.waiting import PATIENCE_S

QUESTION = [{"role": "user", "content": "Write all numbers from one to one thousand in words."}]
ENDLESS = {"max_tokens": -1, "ignore_eos": True}
STREAMS: dict[str, tuple[dict[str, Any], str]] = {
    "/v1/chat/completions": ({"messages": QUESTION, **ENDLESS}, 'data: {"error":'),
    "/v1/completions": ({"prompt": "one, two, three,", **ENDLESS}, 'data: {"error":'),
}
"""The body of an answer that does not end soon, and what its last frame has when the server stops."""


async def streamed(client: httpx.AsyncClient, path: str, begun: asyncio.Event) -> str:
    """All that a stream brings; raises if it is not whole as HTTP."""
    text = ""
    async with client.stream("POST", path, json={**STREAMS[path][0], "stream": True}) as response:
        assert response.status_code == 200, await response.aread()
        async for piece in response.aiter_text():
            text += piece
            begun.set()
    return text


async def stopped(cluster: HttpCluster, with_signal: signal.Signals) -> None:
    async with httpx.AsyncClient(base_url=cluster.url, timeout=PATIENCE_S) as client:
        whole = asyncio.create_task(
            client.post("/v1/chat/completions", json={**STREAMS["/v1/chat/completions"][0], "stream": False})
        )
        begun = [asyncio.Event() for _ in STREAMS]
        async with asyncio.timeout(PATIENCE_S):
            while not (await asyncio.to_thread(cluster.status))["engine"]["live"]:  # noqa: ASYNC110 - another process counts
                await asyncio.sleep(0.05)
            streams = [
                asyncio.create_task(streamed(client, path, event)) for path, event in zip(STREAMS, begun, strict=True)
            ]
            for event in begun:
                await event.wait()
        cluster.served.process.send_signal(with_signal)
        for path, stream in zip(STREAMS, streams, strict=True):
            before, mark, last = (await stream).rpartition(STREAMS[path][1])
            assert before, path
            assert mark
            assert "stopped serving" in last, path
        refused = await whole
    assert refused.status_code == 503
    assert refused.headers["retry-after"]
    assert "stopped serving" in json.loads(refused.content)["error"]["message"]


@pytest.mark.parametrize("with_signal", [signal.SIGINT, signal.SIGTERM], ids=lambda one: one.name)
def test_each_answer_ends_with_an_error_when_the_command_is_stopped(
    with_signal: signal.Signals, tmp_path: Path
) -> None:
    with serving_http(tmp_path, "--max-sequences", "8", "--context", "2048") as cluster:
        asyncio.run(stopped(cluster, with_signal))
        assert cluster.served.process.wait(PATIENCE_S) in (0, 128 + signal.SIGTERM)
        assert cluster.served.process.stderr is not None
        assert "Traceback" not in cluster.served.process.stderr.read()
