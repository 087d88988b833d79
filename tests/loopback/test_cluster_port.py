"""The port of a cluster: any free port is one whose next port, where codes are taken, is free too."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from edgepp.cluster.identity import load_identity, new_cluster
from edgepp.cluster.pairing import protocol
from edgepp.coordinator import cluster_port
from edgepp.coordinator.cluster_port import ClusterPort
from edgepp.errors import UsageError
from edgepp.wire.address import Address


def test_a_port_whose_next_one_is_taken_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEPP_HOME", str(tmp_path))
    tried: list[int] = []

    def listen(address: Address) -> socket.socket:
        tried.append(address.port)
        if len(tried) < 3:
            raise UsageError("taken")
        return protocol.listen(address)

    monkeypatch.setattr(cluster_port, "listen_for_codes", listen)
    identity = load_identity()
    port = ClusterPort(identity, new_cluster(identity), Address("127.0.0.1", 0), lambda _: None)
    try:
        assert len(tried) >= 3
        assert port.address.port + 1 == tried[-1]
    finally:
        port.listener.close()
        port.close()
