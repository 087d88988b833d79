"""Discovery without a network: which announcements are well-formed, and which addresses come first."""

from __future__ import annotations

import socket
import time
from dataclasses import replace
from types import SimpleNamespace

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepp.cluster.discovery import network_interfaces as interfaces
from edgepp.cluster.discovery.announcement import (
    MAX_ADDRESSES,
    Announcement,
    announcement_text,
    instance_name,
    parse_announcement,
    plain_name,
)
from edgepp.cluster.discovery.coordinator_addresses import MAX_ADDRESSES as MAX_TRIED
from edgepp.cluster.discovery.coordinator_addresses import coordinator_addresses
from edgepp.cluster.identity import Cluster, PairedNode
from edgepp.wire.address import Address
from edgepp.wire.security import KeyPair

CLUSTER, NODE = "0123456789abcdef", "fedcba9876543210"
TEXT = {b"v": b"1", b"c": CLUSTER.encode(), b"n": NODE.encode(), b"i": b"7,12", b"ver": b"0.1.0"}


def test_a_flood_of_announcements_leaves_room_for_every_source() -> None:
    """Whoever announces the coordinator at many wrong addresses keeps nobody from a right one."""
    coordinator = PairedNode.of("one", KeyPair.generate().public)

    def announced(first: int) -> Announcement:
        places = tuple(Address(f"10.9.{first}.{number}", 5700) for number in range(MAX_ADDRESSES))
        return Announcement(CLUSTER, coordinator.node, "one", places, (), "0.1.0")

    cluster = Cluster(CLUSTER, coordinator, addresses=("192.168.1.20:5700", "192.168.1.21:5700"))
    heard = [announced(number) for number in range(60)]
    given = Address("192.168.1.9", 5701)
    places = coordinator_addresses(cluster, [given], heard)
    assert len(places) == MAX_TRIED
    assert places[:2] == [given, Address("192.168.1.20", 5700)]
    assert {one.addresses[0] for one in heard} < set(places)
    assert Address("192.168.1.21", 5700) in places
    stranger = replace(announced(0), node=NODE)
    assert coordinator_addresses(cluster, (), [stranger]) == [Address.parse(one) for one in cluster.addresses]


def _entry(family: int, address: str, netmask: str) -> SimpleNamespace:
    return SimpleNamespace(family=family, address=address, netmask=netmask)


@pytest.fixture
def laptop(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[SimpleNamespace]]:
    """A machine with Wi-Fi, docker and a VPN; the test may change it."""
    addresses = {
        "lo": [_entry(socket.AF_INET, "127.0.0.1", "255.0.0.0")],
        "docker0": [_entry(socket.AF_INET, "172.17.0.1", "255.255.0.0")],
        "utun3": [_entry(socket.AF_INET, "10.8.0.2", "255.255.255.255")],
        "down0": [_entry(socket.AF_INET, "10.1.1.1", "255.0.0.0")],
        "en0": [
            _entry(socket.AF_INET6, "fe80::1%en0", "ffff:ffff:ffff:ffff::"),
            _entry(socket.AF_INET6, "fd00::5", "ffff:ffff:ffff:ffff::"),
            _entry(socket.AF_INET, "192.168.1.5", "255.255.255.0"),
        ],
        "bridge0": [_entry(socket.AF_INET, "169.254.7.7", "255.255.0.0")],
    }
    flags = {"lo": "up,loopback,running", "utun3": "up,pointopoint,running"}

    def stats() -> dict[str, SimpleNamespace]:
        return {
            name: SimpleNamespace(isup=name != "down0", flags=flags.get(name, "up,broadcast")) for name in addresses
        }

    monkeypatch.setattr(psutil, "net_if_addrs", lambda: addresses)
    monkeypatch.setattr(psutil, "net_if_stats", stats)
    return addresses


def test_real_addresses_come_before_those_of_docker_and_tunnels(laptop: object) -> None:
    assert interfaces.usable_addresses() == (
        "192.168.1.5",
        "fd00::5",
        "169.254.7.7",
        "fe80::1%en0",
        "172.17.0.1",
        "10.8.0.2",
    )


def test_another_machine_is_tried_on_the_network_we_share_first(laptop: object) -> None:
    theirs = ("172.17.0.1", "10.8.0.9", "fd00::9", "fe80::9%4", "192.168.1.9")
    assert interfaces.by_nearness(theirs) == ("192.168.1.9", "fd00::9", "fe80::9%4", "10.8.0.9", "172.17.0.1")


def test_a_watch_tells_once_of_a_new_address(laptop: dict[str, list[SimpleNamespace]]) -> None:
    watch = interfaces.AddressWatch()
    assert not watch.changed()
    laptop["en0"][2] = _entry(socket.AF_INET, "192.168.1.6", "255.255.255.0")
    assert watch.changed()
    assert not watch.changed()


def test_a_watch_tells_once_of_sleep(laptop: object, monkeypatch: pytest.MonkeyPatch) -> None:
    slept_s = 0.0
    clock = SimpleNamespace(time=lambda: time.time() + slept_s, monotonic=time.monotonic)
    monkeypatch.setattr(interfaces, "time", clock)
    watch = interfaces.AddressWatch()
    assert not watch.changed()
    slept_s = 60.0
    assert watch.changed()
    assert not watch.changed()


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("mini", "mini"),
        ("Jürgen's Mac.local ☃", "Jürgen-s-Mac-local"),
        ("\x1b[31m\x07evil\u202e\u200b", "31m-evil"),
        ("...", "node"),
        ("", "node"),
        ("\udcff", "node"),
        ("机" * 40, "机" * 18),
    ],
)
def test_names_are_made_plain(name: str, plain: str) -> None:
    assert plain_name(name) == plain


@given(st.text())
def test_a_plain_name_stays_so_fits_a_label_and_prints(name: str) -> None:
    plain = plain_name(name)
    assert plain_name(plain) == plain
    assert plain.isprintable()
    assert 0 < len(instance_name(name, NODE).encode()) <= 63


def test_a_well_formed_announcement_is_read() -> None:
    addresses = ["192.0.2.1", "2001:db8::1", "fe80::1%2"]
    record = parse_announcement("mini-fedcba", 5720, TEXT, addresses)
    assert record is not None
    assert (record.cluster, record.node, record.name, record.version) == (CLUSTER, NODE, "mini", "0.1.0")
    assert record.invitations == (7, 12)
    assert {address.host for address in record.addresses} == set(addresses)
    assert {address.port for address in record.addresses} == {5720}


def test_a_written_announcement_is_read_back() -> None:
    text = announcement_text(CLUSTER, NODE, range(40))
    assert all(len(f"{key}={value}") < 256 for key, value in text.items())
    encoded = {key.encode(): value.encode() for key, value in text.items()}
    record = parse_announcement(instance_name("A b", NODE), 1, encoded, [])
    assert record is not None
    assert (record.cluster, record.node, record.name) == (CLUSTER, NODE, "A-b")
    assert record.invitations == tuple(range(24, 40))


@pytest.mark.parametrize(
    "change",
    [
        {b"v": b"2"},
        {b"c": None},
        {b"c": b"0123456789ABCDEF"},
        {b"n": b"fedcba98765432100"},
        {b"n": b"0000000000000000"},  # not the one in the name
        {b"i": b"7,,8"},
        {b"i": b",".join([b"1"] * 17)},
        {b"i": b"9999999"},
        {b"i": "７".encode()},
        {b"ver": b"\x1b[2J"},
        {b"ver": b"1" * 33},
        {b"ver": b"\xff"},
    ],
)
def test_a_malformed_announcement_is_ignored(change: dict[bytes, bytes | None]) -> None:
    assert parse_announcement("mini-fedcba", 5720, TEXT | change, ["192.0.2.1"]) is None


@pytest.mark.parametrize("instance", ["mini", "-fedcba", "mi ni-fedcba", "\x1b[2J-fedcba", "mini-fedcbb"])
def test_a_malformed_name_is_ignored(instance: str) -> None:
    assert parse_announcement(instance, 5720, TEXT, ["192.0.2.1"]) is None


@pytest.mark.parametrize("port", [None, 0, 65536])
def test_a_malformed_port_is_ignored(port: int | None) -> None:
    assert parse_announcement("mini-fedcba", port, TEXT, ["192.0.2.1"]) is None


def test_unusable_addresses_are_dropped_and_their_number_is_bounded() -> None:
    useless = ["224.0.0.251", "0.0.0.0", "255.255.255.255", "fe80::1", "ff02::fb", "::"]  # noqa: S104 - as an example
    record = parse_announcement("mini-fedcba", 5720, TEXT, [*useless, "192.0.2.1"])
    assert record is not None
    assert record.addresses == (Address("192.0.2.1", 5720),)
    many = parse_announcement("mini-fedcba", 5720, TEXT, [f"192.0.2.{i}" for i in range(1, 200)])
    assert many is not None
    assert len(many.addresses) == MAX_ADDRESSES


@given(
    st.text(max_size=80),
    st.none() | st.integers(),
    st.dictionaries(st.sampled_from([b"v", b"c", b"n", b"i", b"ver"]), st.none() | st.binary(max_size=300)),
)
def test_nothing_from_the_network_raises(instance: str, port: int | None, text: dict[bytes, bytes | None]) -> None:
    parse_announcement(instance, port, text, ["192.0.2.1"])
