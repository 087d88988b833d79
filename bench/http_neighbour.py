"""Disturbance of a stream by hostile neighbours: 64 clients that never read their streams, and 64 that abort them.

    python -m bench.http_neighbour

The server runs in a process of its own, over a model that makes a token every ``--pace-ms`` for each request, so that
only HTTP is measured and no engine. The hostile clients run in another process: those that do not read keep their
connections, those that abort come again and again.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing.connection import Connection
from typing import Any

import psutil

from bench.toolkit.script import Result, ScriptArguments, count, script
from edgepp.benchmark.workload import percentile
from edgepp.http_api.generation import ChoiceEnded, Ended, GenerationEvent, GenerationRequest, Started, TextDelta, Usage
from edgepp.http_api.http_options import HttpOptions
from edgepp.http_api.model_service import ServedModel
from edgepp.http_api.server import HttpServer
from edgepp.model.text.conversation import Prompt
from edgepp.python_api.served_cluster import Invitation
from edgepp.tool_calls.tool_use import ToolUse

_PATH = "/v1/chat/completions"
_WORD = "word "
_HOSTILE_TEXT = "x" * 4096
_SETTLE_S = 1.0
_AGAIN_S = 2.0
_MODEL = ServedModel(
    name="paced", names=("paced",), family="llama", context=1 << 20, trained_context=1 << 20, num_parameters=1,
    hidden_size=1, size_bytes=1, quantization="F16", digest="0" * 64, created_s=0, template="", supports_tools=False,
    thinks=False, state="loaded",
)  # fmt: skip


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = ScriptArguments(__doc__)
    parser.add_argument("--clients", type=count, default=64, help="of each hostile kind (%(default)s)")
    parser.add_argument("--tokens", type=count, default=500, help="of the neighbour's stream (%(default)s)")
    parser.add_argument("--pace-ms", type=count, default=10, help="between the tokens of a stream (%(default)s)")
    parser.shared("rounds")
    return parser.parse_args()


class _Paced:
    """A model that makes a token every ``pace_s`` seconds for each request; requests named hostile get long tokens."""

    model = _MODEL

    def __init__(self, pace_s: float) -> None:
        self._pace_s = pace_s
        self.live = 0

    async def prepare(self) -> None:
        return

    def served(self, _name: str | None) -> ServedModel:
        return _MODEL

    async def generate(self, request: GenerationRequest) -> AsyncIterator[GenerationEvent]:
        text = _HOSTILE_TEXT if request.options.sampling.seed else _WORD
        self.live += 1
        try:
            yield Started(1)
            for _ in range(request.options.max_tokens):
                await asyncio.sleep(self._pace_s)
                yield TextDelta(0, text)
            yield ChoiceEnded(0, "stop")
            yield Ended(Usage())
        finally:
            self.live -= 1

    async def encode(self, _prompt: Prompt, _tool_use: ToolUse | None = None, owner: str = "") -> list[int]:  # noqa: ARG002
        return []

    async def decode(self, _token_ids: Sequence[int], owner: str = "") -> str:  # noqa: ARG002
        return ""

    def status(self) -> Mapping[str, Any]:
        return {"live": self.live}

    async def load(self, _model: str) -> None:
        return

    async def invite(self) -> Invitation:
        return Invitation("", (), 0.0)

    async def drain(self, _node: str, *, undo: bool) -> Mapping[str, Any]:
        return {"draining": not undo}

    def observe(self, _on_ended: object) -> None:
        return


def _serve(pipe: Connection, pace_s: float) -> None:
    """The server's process: tells its port, then its state whenever it is asked, until the pipe closes."""

    async def run() -> None:
        service = _Paced(pace_s)
        async with HttpServer(service, HttpOptions("127.0.0.1:0")) as server:
            pipe.send(int(server.url.rpartition(":")[2]))
            with suppress(EOFError):
                while True:
                    await asyncio.to_thread(pipe.recv)
                    process = psutil.Process()
                    connections = sum(one.status == psutil.CONN_ESTABLISHED for one in process.net_connections())
                    rss_mb = process.memory_info().rss / 1e6
                    pipe.send({"live": service.live, "connections": connections, "rss_mb": rss_mb})

    asyncio.run(run())


def _attack(port: int, clients: int) -> None:
    """The hostile clients' process, until it is ended."""

    async def slow() -> None:
        _, writer = await _asking(port, hostile=True)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.Event().wait()

    async def aborting() -> None:
        while True:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                reader, writer = await _asking(port, hostile=True)
                await reader.readuntil(b"data: ")
                writer.transport.abort()
            await asyncio.sleep(_AGAIN_S)

    async def run() -> None:
        await asyncio.gather(*(slow() for _ in range(clients)), *(aborting() for _ in range(clients)))

    asyncio.run(run())


async def _asking(
    port: int, *, hostile: bool, tokens: int = 1 << 18
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    asked = {"messages": [{"role": "user", "content": "x"}], "stream": True, "max_tokens": tokens, "seed": int(hostile)}
    body = json.dumps(asked)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST {_PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
    return reader, writer


@dataclass(frozen=True)
class StreamGaps:
    """Milliseconds between the tokens of streams."""

    p50: float
    p99: float

    @classmethod
    def of(cls, gaps_s: Sequence[float]) -> StreamGaps:
        """The median and the 99th percentile of gaps in seconds."""
        return cls(1000 * percentile(gaps_s, 50), 1000 * percentile(gaps_s, 99))


def _neighbour(port: int, tokens: int) -> list[float]:
    """Seconds between the tokens of one stream."""

    async def run() -> list[float]:
        reader, writer = await _asking(port, hostile=False, tokens=tokens)
        times = []
        while b"[DONE]" not in (line := await reader.readline()):
            if _WORD.encode() in line:
                times.append(time.perf_counter())
        writer.close()
        return [after - before for before, after in pairwise(times)]

    return asyncio.run(run())


def measured(options: argparse.Namespace) -> Result:
    """Gaps of the neighbour's tokens alone and beside the hostile clients, and what the server holds."""
    spawn = multiprocessing.get_context("spawn")
    pipe, theirs = spawn.Pipe()
    server = spawn.Process(target=_serve, args=(theirs, options.pace_ms / 1000), daemon=True)
    server.start()
    theirs.close()
    port = pipe.recv()

    def state() -> dict[str, Any]:
        pipe.send(None)
        found: dict[str, Any] = pipe.recv()
        return found

    def gaps() -> StreamGaps:
        return StreamGaps.of([gap for _ in range(options.rounds) for gap in _neighbour(port, options.tokens)])

    _neighbour(port, 10)
    before, alone = state(), gaps()
    attack = spawn.Process(target=_attack, args=(port, options.clients), daemon=True)
    attack.start()
    while state()["live"] < options.clients:
        time.sleep(0.05)
    time.sleep(_SETTLE_S)
    beside, during = gaps(), state()
    attack.kill()
    attack.join()
    while (after := state())["live"]:
        time.sleep(0.05)
    time.sleep(_SETTLE_S)
    after = state()
    pipe.close()
    server.join()
    return {
        "alone_ms": vars(alone),
        "beside_ms": vars(beside),
        "p99_ratio": beside.p99 / alone.p99,
        "before": before,
        "during": during,
        "after": after,
    }


def lines(result: Result) -> Iterator[str]:
    """Lines of the result for people."""
    for name in ("alone", "beside"):
        found = result[f"{name}_ms"]
        yield f"{name:7} median {found['p50']:.2f} ms, p99 {found['p99']:.2f} ms between tokens"
    yield f"p99 is {result['p99_ratio']:.2f} times"
    for name in ("before", "during", "after"):
        found = result[name]
        yield f"{name:7} {found['live']} answers, {found['connections']} connections, {found['rss_mb']:.0f} MB"


if __name__ == "__main__":
    script("http_neighbour", parse, measured, lines)
