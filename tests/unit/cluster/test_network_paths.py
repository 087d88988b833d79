"""Which addresses of another machine are paths of their own: one per interface that both machines have a network on."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest

from edgepp.cluster.discovery import network_paths
from edgepp.cluster.discovery.network_interfaces import Interface
from edgepp.wire.address import Address
from edgepp.wire.link_rate import Echoes

MINE = (
    Interface("wlan0", "192.168.1.7", ipaddress.ip_network("192.168.1.0/24"), virtual=False),
    Interface("wlan0", "fd00::7", ipaddress.ip_network("fd00::/64"), virtual=False),
    Interface("en5", "169.254.3.4", ipaddress.ip_network("169.254.0.0/16"), virtual=False),
    Interface("docker0", "172.17.0.1", ipaddress.ip_network("172.17.0.0/16"), virtual=True),
    Interface("utun0", "100.64.0.9", ipaddress.ip_network("100.64.0.0/10"), virtual=True),
)


@pytest.mark.parametrize(
    ("hosts", "expected"),
    [
        (["192.168.1.8"], ["192.168.1.8"]),
        (["192.168.1.8", "fd00::8"], ["192.168.1.8"]),  # one interface is one path
        (["192.168.1.8", "169.254.9.9", "fd00::8"], ["192.168.1.8", "169.254.9.9"]),
        (["172.17.0.1", "172.17.0.2", "100.64.0.8"], []),
        (["192.168.1.7"], []),  # this machine itself
        (["two.local", "fe80::1%eth0", "10.0.0.1", "127.0.0.1"], []),
    ],
)
def test_paths_are_the_first_address_of_each_interface(
    monkeypatch: pytest.MonkeyPatch, hosts: list[str], expected: list[str]
) -> None:
    monkeypatch.setattr(network_paths, "interfaces", lambda: MINE)
    found = network_paths.paths([Address(host, 5700) for host in hosts])
    assert [address.host for address in found] == expected


WIFI, CABLE, ELSEWHERE = (Address(host, 5700) for host in ("192.168.1.8", "169.254.9.9", "10.0.0.1"))
SLOW, FAST = Echoes(0.004, 0.2, 1 << 18), Echoes(0.0003, 0.005, 1 << 18)


@pytest.mark.parametrize(
    ("answers", "first", "echoes"),
    [
        ({WIFI: SLOW, CABLE: FAST}, CABLE, FAST),
        ({WIFI: FAST, CABLE: SLOW}, WIFI, FAST),
        ({CABLE: SLOW}, CABLE, SLOW),
        ({}, WIFI, None),
    ],
)
def test_the_fastest_path_comes_first_with_what_was_measured_of_it(
    answers: dict[Address, Echoes], first: Address, echoes: Echoes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network_paths, "interfaces", lambda: MINE)
    monkeypatch.setattr(network_paths, "_echoes", lambda _, address, *__: answers.get(address))
    context: Any = None
    found = network_paths.fastest_first(context, [WIFI, ELSEWHERE, CABLE], None, (2048, 1 << 18))
    assert found.addresses[0] == first
    assert sorted(map(str, found.addresses)) == sorted(map(str, (WIFI, ELSEWHERE, CABLE)))
    assert found.echoes == echoes
    alone = network_paths.fastest_first(context, [WIFI, ELSEWHERE], None, (2048, 1 << 18))
    assert alone == ([WIFI, ELSEWHERE], None)
