"""The coordinator of the selftest's own cluster finds two ports, whatever else listens on this machine."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from edgepp.cluster.identity import forget_cluster
from edgepp.python_api import ServedCluster
from edgepp.selftest import member
from tests.builders.checkpoints import Checkpoints
from tests.waiting import PATIENCE_S


@pytest.fixture
def model(checkpoints: Checkpoints) -> Path:
    return checkpoints()


def test_a_coordinator_whose_next_port_is_taken_gets_others(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, Any]] = []
    listening = asyncio.Event()

    def report(event: str, **facts: Any) -> None:
        told.append({"event": event, **facts})
        listening.set()

    monkeypatch.setattr(member, "report", report)
    ports: list[int] = []
    taken: list[socket.socket] = []
    invite = ServedCluster.invite

    async def invite_beside(cluster: ServedCluster) -> str:
        ports.append(int(cluster.address.rpartition(":")[2]))
        if len(ports) == 1:
            with suppress(OSError, OverflowError):  # somebody else has it, or there is none
                taken.append(socket.create_server(("127.0.0.1", ports[0] + 1)))
        return await invite(cluster)

    monkeypatch.setattr(ServedCluster, "invite", invite_beside)

    async def run() -> None:
        ended = asyncio.Event()
        running = asyncio.create_task(member.run({"role": "serve", "model": str(model), "threads": 1}, ended))
        async with asyncio.timeout(PATIENCE_S):
            waiting = asyncio.create_task(listening.wait())
            await asyncio.wait([waiting, running], return_when=asyncio.FIRST_COMPLETED)
        ended.set()
        waiting.cancel()
        await running

    try:
        asyncio.run(run())
    finally:
        forget_cluster()
        for one in taken:
            one.close()
    assert len(ports) >= 2
    assert told[0]["address"] == f"127.0.0.1:{ports[-1]}"
    assert told[0]["code"]
