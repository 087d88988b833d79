"""A load over HTTP from another process, and a cluster with its HTTP server in this one."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from bench.toolkit.processors import pin_stages
from edgepp import Answer, GenerateOptions, HttpOptions, HttpServer, ServedCluster, serve
from edgepp.benchmark.workload import ObservedAnswer, RequestGroup
from edgepp.errors import EdgeppError
from edgepp.python_api import Question

_PROGRAM = Path(__file__).with_name("http_load_program.py").resolve()
_LINE_BYTES = 1 << 24


class HttpLoad:
    """Questions over HTTP from a process of their own. Must be closed."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, url: str, model: str) -> HttpLoad:
        """Start the process, which asks ``model`` at the base URL ``url``."""
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(_PROGRAM), stdin=pipe, stdout=pipe, limit=_LINE_BYTES
        )
        load = cls(process)
        load._send({"url": url, "model": model})
        return load

    async def ask_at_once(self, group: RequestGroup, numbers: Iterator[int]) -> list[ObservedAnswer]:
        """Ask all requests of ``group`` at the same time, as ``workload.ask_at_once`` does.

        Raises:
            EdgeppError: an answer failed.
        """
        prompts = [group.prompt(next(numbers)) for _ in range(group.requests)]
        self._send({"prompts": prompts, "tokens": group.tokens})
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        found: dict[str, Any] = json.loads(line) if line else {"error": "the client ended"}
        if "error" in found:
            raise EdgeppError(f"over HTTP: {found['error']}")
        return [
            ObservedAnswer(one["prompt_tokens"], one["reused"], one["tokens"], tuple(one["arrivals_s"]))
            for one in found["answers"]
        ]

    async def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._process.wait()

    def _send(self, message: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message).encode() + b"\n")


class InProcess:
    """A cluster of this process as ``workload.Askable``."""

    def __init__(self, cluster: ServedCluster) -> None:
        self._cluster = cluster

    def ask(self, prompt: Question, options: GenerateOptions | None = None, *, raw: bool = False) -> Answer:
        """Ask a question, as ``ServedCluster.ask`` does."""
        return self._cluster.ask(prompt, options, raw=raw)

    async def open(self) -> None:
        """Do nothing: the cluster opens its pipeline by itself."""


@dataclass(frozen=True)
class MeasuredCluster:
    """A cluster that answers over HTTP and in this process."""

    cluster: ServedCluster
    url: str
    pinned: list[list[int]] | None
    """The CPUs of each stage."""


@asynccontextmanager
async def cluster_with_http(model: str, stages: int, threads: int, backend: str) -> AsyncIterator[MeasuredCluster]:
    """A cluster of this machine alone, with an identity of its own, ready to answer."""
    with tempfile.TemporaryDirectory(prefix="edgepp-bench-") as home:
        os.environ["EDGEPP_HOME"] = home
        served = serve(model, listen="127.0.0.1:0", stages=stages, threads=threads * stages, backend=backend)
        async with served as cluster:
            await cluster.ready()
            pinned = pin_stages([psutil.Process(one["pid"]) for one in cluster.status["stages"]], threads)
            async with HttpServer(cluster, HttpOptions("127.0.0.1:0")) as http:
                yield MeasuredCluster(cluster, http.url, pinned)


def together(answers: Sequence[ObservedAnswer]) -> float:
    """Tokens of all requests / the time until the last one had its last."""
    return sum(answer.tokens for answer in answers) / max(answer.time_s for answer in answers)
