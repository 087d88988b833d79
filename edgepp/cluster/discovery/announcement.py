"""What a coordinator says of itself by multicast DNS: written, and checked when read.

All of it is hostile until checked, and unproven afterwards.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import edgepp
from edgepp.cluster.discovery.network_interfaces import by_nearness
from edgepp.wire.transport import Address

FORMAT = "1"  # of the TXT record; readers pass over any other
MAX_ADDRESSES = 16
MAX_INVITATIONS = 16
_MAX_HEARD = 256  # addresses of one name that are looked at, for anyone may add some to it
_LABEL_BYTES = 63
_SUFFIX = 6  # hex digits of the node id that make an instance's name unique


@dataclass(frozen=True)
class Announcement:
    """What a coordinator is heard to say: a hint from the network, checked for form and not proven.

    ``addresses`` are those of its control port, the likeliest to be reachable from here first. ``invitations`` are the
    numbers of those that are open.
    """

    cluster: str
    node: str
    name: str
    addresses: tuple[Address, ...]
    invitations: tuple[int, ...]
    version: str


def plain_name(name: str) -> str:
    """A machine's name with nothing but letters, digits, ``-`` and ``_``: safe in DNS and in a terminal."""
    plain = re.sub(r"[^\w-]+", "-", name).strip("-")
    cut = plain.encode("utf-8", "replace")[: _LABEL_BYTES - _SUFFIX - 1].decode("utf-8", "ignore")
    return cut.strip("-") or "node"


def instance_name(name: str, node: str) -> str:
    """The DNS label under which a node called ``name`` announces itself."""
    return f"{plain_name(name)}-{node[:_SUFFIX]}"


def announcement_text(cluster: str, node: str, invitations: Sequence[int]) -> dict[str, str]:
    """The TXT record; of more than 16 invitations the last ones."""
    numbers = ",".join(str(number) for number in invitations[-MAX_INVITATIONS:])
    return {"v": FORMAT, "c": cluster, "n": node, "i": numbers, "ver": edgepp.__version__}


def parse_announcement(
    instance: str, port: int | None, text: Mapping[bytes, bytes | None], addresses: Sequence[str]
) -> Announcement | None:
    """A record from what came off the network, or None when any of it breaks the form.

    ``instance`` is the service's name without its type, ``text`` its TXT record, ``addresses`` with their ``%scope``.
    """

    def field(key: bytes, pattern: str) -> str | None:
        value = (text.get(key) or b"").decode("ascii", "replace")
        return value if re.fullmatch(pattern, value, re.ASCII) else None

    cluster, node = field(b"c", r"[0-9a-f]{16}"), field(b"n", r"[0-9a-f]{16}")
    version = field(b"ver", r"[0-9A-Za-z.+-]{1,32}")
    numbers = field(b"i", rf"(\d{{1,6}}(,\d{{1,6}}){{0,{MAX_INVITATIONS - 1}}})?")
    if field(b"v", FORMAT) is None or cluster is None or node is None or version is None or numbers is None:
        return None
    name = instance.removesuffix(f"-{node[:_SUFFIX]}")
    if name == instance or name != plain_name(name) or port is None or not 0 < port < 65536:
        return None
    reachable = by_nearness(one for one in addresses[:_MAX_HEARD] if _is_host(one))[:MAX_ADDRESSES]
    invitations = tuple(int(number) for number in numbers.split(",") if number)
    return Announcement(cluster, node, name, tuple(Address(one, port) for one in reachable), invitations, version)


def _is_host(text: str) -> bool:
    ip = ipaddress.ip_address(text)
    if ip.is_multicast or ip.is_unspecified or ip.is_reserved:
        return False
    return not (ip.version == 6 and ip.is_link_local and "%" not in text)  # without a scope it leads nowhere
