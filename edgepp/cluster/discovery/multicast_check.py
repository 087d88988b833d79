"""Whether multicast DNS works on each network interface of this machine, for `edgepp doctor`.

IPv4 only: a network that drops multicast drops that of both IP versions.
"""

from __future__ import annotations

import ipaddress
import select
import socket
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from edgepp.cluster.discovery.network_interfaces import Interface, interfaces

GROUP, PORT = "224.0.0.251", 5353
# Our own service, and the list of all services, which printers, televisions and Macs answer.
_QUESTIONS = ("_edgepp._tcp.local", "_services._dns-sd._udp.local")
_MAX_SENDERS = 64


@dataclass
class Hearing:
    """What was received on one interface: whether this machine's own question, and the senders of other messages."""

    interface: str
    address: str
    own: bool = False
    others: list[str] = field(default_factory=list)
    error: OSError | None = None  # why the question could not be sent


def listen(wait_s: float) -> tuple[Hearing, ...]:
    """Ask on every interface, and listen to multicast DNS for ``wait_s`` seconds.

    Raises:
        OSError: port 5353 cannot be bound.
    """
    return listen_on(tuple(one for one in interfaces() if ":" not in one.address), wait_s)


def listen_on(where: Sequence[Interface], wait_s: float) -> tuple[Hearing, ...]:
    """Ask and listen on the IPv4 interfaces ``where`` for ``wait_s`` seconds."""
    hearings = {one: Hearing(one.name, one.address) for one in where}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(("", PORT))
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 255)
        for one, hearing in hearings.items():
            try:
                _ask(sock, one.address)
            except OSError as error:
                hearing.error = error
        deadline_s = time.monotonic() + wait_s
        while (left_s := deadline_s - time.monotonic()) > 0:
            if select.select([sock], [], [], left_s)[0]:
                _, (sender, _) = sock.recvfrom(9000)
                _note(hearings, sender)
    return tuple(hearings.values())


def _ask(sock: socket.socket, address: str) -> None:
    local = socket.inet_aton(address)
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton(GROUP) + local)
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, local)
    sock.sendto(_query(), (GROUP, PORT))


def _query() -> bytes:
    """A DNS message that asks for the PTR records of the questions."""
    header = struct.pack("!6H", 0, 0, len(_QUESTIONS), 0, 0, 0)
    return header + b"".join(_name(name) + struct.pack("!HH", 12, 1) for name in _QUESTIONS)


def _name(name: str) -> bytes:
    return b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"


def _note(hearings: dict[Interface, Hearing], sender: str) -> None:
    """Note a datagram at the interface whose network contains its sender."""
    ip = ipaddress.ip_address(sender)
    for one, hearing in hearings.items():
        if sender == one.address:
            hearing.own = True
            return
    for one, hearing in hearings.items():
        if ip in one.network and sender not in hearing.others and len(hearing.others) < _MAX_SENDERS:
            hearing.others.append(sender)
            return
