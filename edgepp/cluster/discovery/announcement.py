"""The announcement of a coordinator by multicast DNS: how it is written, and how a received one is checked.

Received data is hostile until checked, and unproven afterwards.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import edgepp
from edgepp.cluster.discovery.network_interfaces import by_nearness
from edgepp.wire.address import Address

FORMAT = "1"  # of the TXT record; other formats are ignored
MAX_ADDRESSES = 16
MAX_INVITATIONS = 16
_MAX_RECEIVED_ADDRESSES = 256  # of one name, to which any machine on the network can add addresses
_LABEL_BYTES = 63  # RFC 1035
_SUFFIX_DIGITS = 6  # hexadecimal digits of the node id, which make an instance's name unique


@dataclass(frozen=True)
class Announcement:
    """A received announcement of a coordinator: well-formed, but not proven.

    ``cluster`` and ``node`` are ids of 16 hexadecimal digits. ``addresses`` are those of the cluster port, the most
    likely to be reachable from this machine first. ``invitations`` are the numbers of the open invitations.
    """

    cluster: str
    node: str
    name: str
    addresses: tuple[Address, ...]
    invitations: tuple[int, ...]
    version: str


def plain_name(name: str) -> str:
    """A machine's name reduced to letters, digits, ``-`` and ``_``: safe in DNS and in a terminal."""
    plain = re.sub(r"[^\w-]+", "-", name).strip("-")
    cut = plain.encode("utf-8", "replace")[: _LABEL_BYTES - _SUFFIX_DIGITS - 1].decode("utf-8", "ignore")
    return cut.strip("-") or "node"


def instance_name(name: str, node: str) -> str:
    """The DNS label under which a node called ``name`` announces itself."""
    return f"{plain_name(name)}-{node[:_SUFFIX_DIGITS]}"


def announcement_text(cluster: str, node: str, invitations: Sequence[int]) -> dict[str, str]:
    """The TXT record to announce, with the last ``MAX_INVITATIONS`` invitation numbers."""
    numbers = ",".join(str(number) for number in invitations[-MAX_INVITATIONS:])
    return {"v": FORMAT, "c": cluster, "n": node, "i": numbers, "ver": edgepp.__version__}


def parse_announcement(
    instance: str, port: int | None, text: Mapping[bytes, bytes | None], addresses: Sequence[str]
) -> Announcement | None:
    """Check an announcement from the network; None where any part of it is malformed.

    ``instance`` is the service's name without its type, ``text`` its TXT record; ``addresses`` have their ``%scope``.
    """

    def field(key: bytes, pattern: str) -> str | None:
        value = (text.get(key) or b"").decode("ascii", "replace")
        return value if re.fullmatch(pattern, value, re.ASCII) else None

    cluster, node = field(b"c", r"[0-9a-f]{16}"), field(b"n", r"[0-9a-f]{16}")
    version = field(b"ver", r"[0-9A-Za-z.+-]{1,32}")
    numbers = field(b"i", rf"(\d{{1,6}}(,\d{{1,6}}){{0,{MAX_INVITATIONS - 1}}})?")
    if field(b"v", FORMAT) is None or cluster is None or node is None or version is None or numbers is None:
        return None
    name = instance.removesuffix(f"-{node[:_SUFFIX_DIGITS]}")
    if name == instance or name != plain_name(name) or port is None or not 0 < port < 65536:
        return None
    reachable = by_nearness(one for one in addresses[:_MAX_RECEIVED_ADDRESSES] if _is_usable(one))[:MAX_ADDRESSES]
    invitations = tuple(int(number) for number in numbers.split(",") if number)
    return Announcement(cluster, node, name, tuple(Address(one, port) for one in reachable), invitations, version)


def _is_usable(text: str) -> bool:
    ip = ipaddress.ip_address(text)
    if ip.is_multicast or ip.is_unspecified or ip.is_reserved:
        return False
    return not (
        ip.version == 6 and ip.is_link_local and "%" not in text
    )  # a link-local address without a scope cannot be used
