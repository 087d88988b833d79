"""Two networks of this machine (Linux) that look like those of a neighbour, who has 127.0.0.1 and 127.0.0.2 there."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest

from edgepp.cluster.discovery import network_paths
from edgepp.cluster.discovery.network_interfaces import Interface
from edgepp.wire import link_rate
from edgepp.wire.address import Address
from edgepp.wire.link_rate import Echoes
from tests.waiting import PATIENCE_S

_INTERFACES = (
    Interface("wlan0", "127.0.0.0", ipaddress.ip_network("127.0.0.0/31"), virtual=False),
    Interface("en5", "127.0.0.3", ipaddress.ip_network("127.0.0.2/31"), virtual=False),
)


def two_networks(monkeypatch: pytest.MonkeyPatch) -> dict[Address, Echoes]:
    """Let every choice of a path see both networks; returns what is measured from now on, by address."""
    measured: dict[Address, Echoes] = {}
    measure = link_rate.measure_link

    def noted(link: Any, *rest: Any) -> Echoes | None:
        found = measure(link, *rest)
        if found is not None:
            measured[link.address] = found
        return found

    monkeypatch.setattr(network_paths, "interfaces", lambda: _INTERFACES)
    monkeypatch.setattr(network_paths, "measure_link", noted)
    monkeypatch.setattr(network_paths, "PATH_WAIT_S", PATIENCE_S)
    return measured
