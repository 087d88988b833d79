"""The checks of `edgepp doctor` that look at the network: addresses, multicast, coordinators, the way to a peer."""

from __future__ import annotations

import errno
import socket
import sys
from collections.abc import Iterator, Sequence

from edgepp.cluster.discovery.announcement import Announcement
from edgepp.cluster.discovery.mdns import Browser
from edgepp.cluster.discovery.multicast_check import PORT, Hearing, listen
from edgepp.cluster.discovery.network_interfaces import interfaces, usable_addresses
from edgepp.ui.finding import Finding, Known
from edgepp.wire.transport import Address

_LISTEN_S = 2.0
_DISCOVER_S = 2.0
_CONNECT_S = 4.5  # Linux takes 3 s to learn that nobody has an address
_BY_HAND = "name the other machine: --peer HOST:PORT"
_MAC_PERMISSION = "allow your terminal in System Settings > Privacy & Security > Local Network, then start it anew"


def addresses() -> Finding:
    """Under which addresses others may reach this machine."""
    if not (found := interfaces()):
        return Finding("addresses", False, "only loopback: no network is up", "connect a cable or Wi-Fi")
    described = (f"{one.address} ({one.name}{', seldom reachable' if one.virtual else ''})" for one in found)
    return Finding("addresses", True, ", ".join(described))


def multicast() -> Iterator[Finding]:
    """Whether port 5353 can be shared, and what is heard there on each interface."""
    try:
        hearings = listen(_LISTEN_S)
    except OSError as error:
        do = "end the program that keeps it for itself (`disallow-other-stacks` in avahi's settings), or " + _BY_HAND
        yield Finding(f"port {PORT}", False, f"cannot be had: {error.strerror}", do)
        return
    yield Finding(f"port {PORT}", True, "can be shared")
    if not hearings:
        yield Finding("multicast", None, "no IPv4 interface to listen on", _BY_HAND)
    yield from judge_hearings(hearings)


def judge_hearings(hearings: Sequence[Hearing]) -> Iterator[Finding]:
    """A finding for each interface."""
    heard = any(hearing.others for hearing in hearings)
    for hearing in hearings:
        name = f"multicast on {hearing.interface} ({hearing.address})"
        if hearing.error is not None:
            yield _not_sent(name, hearing.error, heard=heard)
        elif hearing.others:
            count = len(hearing.others)
            others = ", ".join(hearing.others[:4]) + (", …" if count > 4 else "")
            yield Finding(name, True, f"{count} other machine{'s' if count > 1 else ''} heard: {others}")
        elif hearing.own:
            do = "" if heard else f"if others speak here, the network or a firewall blocks multicast; {_BY_HAND}"
            yield Finding(name, None, "only this machine heard itself", do)
        else:
            do = f"let a firewall on this machine pass UDP port {PORT}, or {_BY_HAND}"
            yield Finding(name, None if heard else False, "nothing heard, not even this machine", "" if heard else do)


def _not_sent(name: str, error: OSError, *, heard: bool) -> Finding:
    """What it means that the question could not be sent. The macOS branch has not been run on macOS."""
    reason = error.strerror or str(error)
    if sys.platform == "darwin" and error.errno == errno.EHOSTUNREACH:
        return Finding(name, False, "macOS does not let this program into the local network", _MAC_PERMISSION)
    if error.errno in (errno.EPERM, errno.EACCES):
        do = f"let a firewall on this machine pass UDP port {PORT}, or {_BY_HAND}"
        return Finding(name, False, f"sending is forbidden: {reason}", do)
    return Finding(name, None if heard else False, f"cannot send: {reason}", "" if heard else _BY_HAND)


def coordinators(known: Known, *, answers: bool) -> Iterator[Finding]:
    """Whether a coordinator is heard, ours above all, and whether another machine uses this one's id.

    ``answers`` says that ours was reached, heard or not.
    """

    browser = Browser()
    try:
        browser.find(lambda _: False, _DISCOVER_S)  # the whole time, for there may be several
        found = browser.announcements()
    finally:
        browser.close()
    yield judge_coordinators(found, known, answers=answers)
    yield judge_ids(found, known, usable_addresses())


def judge_coordinators(found: Sequence[Announcement], known: Known, *, answers: bool = False) -> Finding:
    """Whether this machine's cluster is among those heard."""
    name = "coordinator"
    if ours := [record for record in found if record.cluster == known.cluster]:
        return Finding(name, True, ", ".join(_described(record) for record in ours))
    others = f"heard other clusters: {', '.join(_described(record) for record in found)}" if found else "heard none"
    if known.cluster is None:
        return Finding(name, None, others, "start one with `edgepp serve`" if not found else "")
    if answers:
        do = "machines that do not hear it either join it with --peer HOST:PORT"
        return Finding(name, None, f"ours answers, and is not announced where this machine listens; {others}", do)
    do = f"run `edgepp serve` on its machine; if it runs, {_BY_HAND}"
    return Finding(name, None, f"ours was not heard, {others}", do)


def judge_ids(found: Sequence[Announcement], known: Known, own: Sequence[str]) -> Finding:
    """Whether another machine announces this machine's node id; ``own`` are this machine's addresses."""
    bare = {address.partition("%")[0] for address in own}
    for record in found:
        hosts = {address.host.partition("%")[0] for address in record.addresses}
        if record.node == known.node and hosts and not any(_is_own(host, bare) for host in hosts):
            what = f"{_described(record)} uses this machine's node id"
            do = (
                "if that is another machine, it is a copy of this one: delete its edgepp configuration and join it anew"
            )
            return Finding("node id", False, what, do)
    return Finding("node id", True if known.node else None, "heard from no other machine")


def _is_own(host: str, own: set[str]) -> bool:
    return host in own or Address(host, 0).is_loopback


def _described(record: Announcement) -> str:
    where = f" at {record.addresses[0]}" if record.addresses else ""
    return f"{record.name}{where} (cluster {record.cluster}, edgepp {record.version})"


def reach(peer: Address) -> Finding:
    """Whether a TCP connection to ``peer`` comes about."""
    name = f"way to {peer}"
    try:
        with socket.create_connection((peer.host, peer.port), _CONNECT_S) as sock:
            return Finding(name, True, f"a connection comes about, from {sock.getsockname()[0]}")
    except OSError as error:
        return Finding(name, False, *explain(error, peer))


def explain(error: OSError, peer: Address) -> tuple[str, str]:
    """What is wrong when a connection to ``peer`` fails so, and what to do. The macOS branch was not run on macOS."""
    if isinstance(error, socket.gaierror):
        return f"'{peer.host}' is not a known name", "check the spelling, or use the machine's IP address"
    if isinstance(error, ConnectionRefusedError):
        do = f"start `edgepp serve` there, and see that it prints port {peer.port}"
        return "the machine is there, but no edgepp listens on this port", do
    if isinstance(error, TimeoutError):
        do = f"check its address on that machine, and let its firewall pass TCP port {peer.port} and the next"
        return f"no answer for {_CONNECT_S:g} s: a firewall drops it, or the address is wrong or asleep", do
    if error.errno == errno.EHOSTUNREACH and sys.platform == "darwin":
        return "macOS does not let this program into the local network, or nobody has this address", _MAC_PERMISSION
    if error.errno in (errno.EHOSTUNREACH, errno.ENETUNREACH):
        do = "check that both machines are on one network, and the address on that machine"
        return f"there is no way to it, or nobody has this address ({error.strerror})", do
    return f"no connection: {error.strerror or error}", "check the address and the network"
