"""A two-stage cluster with real weights and its HTTP server, which starts once per worker for the tests of all APIs.

A module of tests imports the fixture ``http_cluster``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.cluster import Machine, Running

MODEL = "smollm2-135m"


@dataclass(frozen=True)
class HttpCluster:
    """A cluster that answers."""

    url: str
    """The base URL, without ``/v1``."""
    machine: Machine
    served: Running

    def status(self) -> dict[str, Any]:
        """What `edgepp status --json` says."""
        return self.machine.json("status", "--json")


@pytest.fixture(scope="module")
def http_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpCluster]:
    """`edgepp serve -m smollm2-135m --stages 2` with HTTP on a free port of loopback."""
    machine = Machine(tmp_path_factory.mktemp("http-cluster"), "one")
    options = ("--listen", "127.0.0.1:0", "--http", "127.0.0.1:0")
    with machine.running("serve", "-m", MODEL, "--stages", "2", *options) as served:
        url = served.until("listening")["http"]
        served.until("ready")
        yield HttpCluster(url, machine, served)
