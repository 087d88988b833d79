"""This machine's network addresses, which of them others can reach, and when they change."""

from __future__ import annotations

import ipaddress
import re
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass

import psutil

_SLEEP_S = 2.0  # a clock jump of this length means that the machine slept
# Bridges of containers and virtual machines, tunnels, Apple's peer-to-peer links: rarely a way to a neighbour.
# bridge0 is a Mac's Thunderbolt bridge and a good way; bridge100 and above belong to virtual machines.
_VIRTUAL = re.compile(
    r"docker|br-|veth|virbr|vnet|vmnet|vboxnet|lxc|lxdbr|cni|cali|flannel|podman|bridge\d{3}"
    r"|utun|tun|tap|wg|tailscale|zt|ppp|ipsec|awdl|llw|anpi|ap\d"
)


@dataclass(frozen=True)
class Interface:
    """One address of a network interface that is up; a link-local IPv6 ``address`` has its ``%scope``."""

    name: str
    address: str
    network: ipaddress.IPv4Network | ipaddress.IPv6Network
    virtual: bool

    @property
    def rank(self) -> tuple[bool, int]:
        """The sort key: addresses that others are likely to reach come first."""
        return self.virtual, address_rank(self.address)


def address_rank(address: str) -> int:
    """The order in which to try an address: 0 IPv4, 1 routable IPv6, 2 link-local IPv4, 3 link-local IPv6."""
    ip = ipaddress.ip_address(address)
    return (2 if ip.is_link_local else 0) + (ip.version == 6)


def interfaces() -> tuple[Interface, ...]:
    """Every address that is up and not loopback, first those that others are likely to reach."""
    stats = psutil.net_if_stats()
    found = []
    for name, entries in psutil.net_if_addrs().items():
        flags = stats[name].flags.split(",") if name in stats and stats[name].isup else ["loopback"]
        if "loopback" in flags:
            continue
        virtual = "pointopoint" in flags or _VIRTUAL.match(name) is not None
        for entry in entries:
            if entry.family in (socket.AF_INET, socket.AF_INET6):
                ip = ipaddress.ip_address(entry.address)
                if not (ip.is_loopback or ip.is_unspecified):
                    found.append(Interface(name, str(ip), _network(ip, entry.netmask), virtual))
    return tuple(sorted(dict.fromkeys(found), key=lambda one: one.rank))


def usable_addresses() -> tuple[str, ...]:
    """This machine's IP addresses that others might reach, in the order of ``interfaces``: a hint to be probed."""
    return tuple(dict.fromkeys(one.address for one in interfaces()))


def shared_interface(mine: Iterable[Interface], ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> Interface | None:
    """The first of ``mine``, virtual ones aside, that is on the network of ``ip``; None where no network is shared."""
    return next((one for one in mine if not one.virtual and ip in one.network), None)


def by_nearness(addresses: Iterable[str]) -> tuple[str, ...]:
    """Sort another machine's ``addresses``: those on a network of this machine come first.

    An address that this machine has too, such as Docker's default one, comes last: it leads back to this machine.
    """
    mine = interfaces()
    own = {one.address.partition("%")[0] for one in mine}

    def rank(address: str) -> tuple[bool, bool, int]:
        bare = address.partition("%")[0]
        near = shared_interface(mine, ipaddress.ip_address(bare)) is not None
        return bare in own, not near, address_rank(address)

    return tuple(sorted(dict.fromkeys(addresses), key=rank))


def _network(
    ip: ipaddress.IPv4Address | ipaddress.IPv6Address, netmask: str | None
) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    bits = bin(int(ipaddress.ip_address(netmask))).count("1") if netmask else ip.max_prefixlen
    if ip.version == 4:
        return ipaddress.IPv4Network((int(ip), bits), strict=False)
    return ipaddress.IPv6Network((int(ip), bits), strict=False)


class AddressWatch:
    """Detects that this machine's addresses changed, or that it slept."""

    def __init__(self) -> None:
        self._addresses = frozenset(usable_addresses())
        self._offset = time.time() - time.monotonic()
        self.slept_s = 0.0
        """How long the machine had slept when ``changed`` was True last; 0 where its addresses alone had changed."""

    def changed(self) -> bool:
        """True once after the addresses changed or the machine slept; cheap enough for two calls per second.

        The monotonic clock stops while the machine sleeps and the wall clock does not, so their difference grows.
        """
        addresses, offset = frozenset(usable_addresses()), time.time() - time.monotonic()
        jump_s = offset - self._offset
        changed = addresses != self._addresses or abs(jump_s) > _SLEEP_S
        if changed:
            self.slept_s = jump_s if jump_s > _SLEEP_S else 0.0
        self._addresses, self._offset = addresses, offset
        return changed
