"""A two-stage cluster with real weights and its HTTP server, for the tests of all APIs.

It is started once per run: the fixture lives in ``conftest.py``, and files named ``test_http_*`` share a worker.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.cluster import Machine, Running
from tests.waiting import PATIENCE_S, eventually

MODEL = "smollm2-135m"


@dataclass(frozen=True)
class HttpCluster:
    """A cluster that answers."""

    url: str
    """The base URL, without ``/v1``."""
    machine: Machine
    served: Running

    def status(self) -> dict[str, Any]:
        """The cluster's state."""
        return self.machine.status()

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, timeout=PATIENCE_S)

    def post(self, path: str, **body: Any) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=PATIENCE_S)

    def wait_until_idle(self) -> None:
        """Wait until no request is live or waits on the cluster; its stages may keep prefixes."""

        def idle() -> bool:
            engine = self.status()["engine"]
            return (engine["live"], engine["waiting"]) == (0, 0)

        eventually("no request is live", idle)


@contextmanager
def serving_http(folder: Path, *options: str, model: str = MODEL, ready: bool = True) -> Iterator[HttpCluster]:
    """`edgepp serve` with HTTP on a free port of loopback; able to answer if ``ready``, else perhaps not yet."""
    machine = Machine(folder, "one")
    given = ("-m", model, "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", *options)
    # Tests that end while the cluster runs must not take it for a process that they left behind.
    with machine.running("serve", *given, EDGEPP_TEST_RUN="shared") as served:
        url = served.until("listening")["http"]
        if ready:
            served.until("ready")
        yield HttpCluster(url, machine, served)
