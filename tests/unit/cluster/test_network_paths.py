"""Which addresses of another machine are paths of their own: one per interface that both machines have a network on."""

from __future__ import annotations

import ipaddress

import pytest

from edgepp.cluster.discovery import network_paths
from edgepp.cluster.discovery.network_interfaces import Interface
from edgepp.wire.address import Address

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
