"""Where `edgepp launch` says to look for a server."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from edgepp.cluster.identity import PairedNode, load_identity, new_cluster, save_cluster
from edgepp.errors import UsageError
from edgepp.ui.launch.target import find_target
from edgepp.wire.security import KeyPair


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEPP_HOME", str(tmp_path / "edgepp"))


def hint() -> str:
    with pytest.raises(UsageError, match="no HTTP server runs on this machine") as raised:
        find_target(None, "")
    return raised.value.hint


def test_a_machine_of_no_cluster_is_told_to_serve() -> None:
    assert hint() == "start one with `edgepp serve`, or name one with --url"


def test_the_machine_that_serves_is_told_to_serve() -> None:
    save_cluster(replace(new_cluster(load_identity()), addresses=("192.168.1.7:5577",)))
    assert "start one with `edgepp serve`" in hint()


def test_a_machine_that_joined_is_told_the_address_of_the_one_that_serves() -> None:
    desktop = PairedNode.of("desktop", KeyPair.generate().public)
    joined = replace(new_cluster(load_identity()), coordinator=desktop, addresses=("192.168.1.7:5577",))
    save_cluster(joined)
    assert "joined the cluster of desktop" in hint()
    assert "--url http://192.168.1.7:11434" in hint()
