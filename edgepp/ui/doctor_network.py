"""The network checks of `edgepp doctor`: addresses, multicast, coordinators, the connection to a peer."""

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
from edgepp.wire.address import Address

_LISTEN_S = 2.0
_DISCOVER_S = 2.0
_CONNECT_S = 4.5  # Linux takes 3 s to find that no machine has an address
_BY_HAND = "give the address of the other machine with --peer HOST:PORT"
_MAC_PERMISSION = (
    "allow your terminal in System Settings > Privacy & Security > Local Network, and restart the terminal"
)


def addresses() -> Finding:
    """The addresses at which other machines may reach this one."""
    if not (found := interfaces()):
        return Finding("addresses", False, "only loopback: no network is up", "connect a network cable or Wi-Fi")
    described = (f"{one.address} ({one.name}{', virtual' if one.virtual else ''})" for one in found)
    return Finding("addresses", True, ", ".join(described))


def multicast() -> Iterator[Finding]:
    """Whether port 5353 can be opened, and which machines are heard there on each interface."""
    try:
        hearings = listen(_LISTEN_S)
    except OSError as error:
        do = "end the program that does not share the port (for avahi: `disallow-other-stacks=no`), or " + _BY_HAND
        yield Finding(f"port {PORT}", False, f"cannot be opened: {error.strerror}", do)
        return
    yield Finding(f"port {PORT}", True, "can be opened")
    if not hearings:
        yield Finding("multicast", None, "no IPv4 interface to listen on", _BY_HAND)
    yield from judge_hearings(hearings)


def judge_hearings(hearings: Sequence[Hearing]) -> Iterator[Finding]:
    """One finding per network interface: other machines heard over multicast DNS there, or the fault."""
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
            do = (
                "" if heard else f"if other machines are on this network, it or a firewall blocks multicast: {_BY_HAND}"
            )
            yield Finding(name, None, "no other machine heard", do)
        else:
            do = f"allow UDP port {PORT} in the firewall of this machine, or {_BY_HAND}"
            yield Finding(
                name, None if heard else False, "nothing heard, not even this machine itself", "" if heard else do
            )


def _not_sent(name: str, error: OSError, *, heard: bool) -> Finding:
    """The finding after the multicast query could not be sent. The macOS branch has not been run on macOS."""
    reason = error.strerror or str(error)
    if sys.platform == "darwin" and error.errno == errno.EHOSTUNREACH:
        return Finding(name, False, "macOS does not allow this program to use the local network", _MAC_PERMISSION)
    if error.errno in (errno.EPERM, errno.EACCES):
        do = f"allow UDP port {PORT} in the firewall of this machine, or {_BY_HAND}"
        return Finding(name, False, f"sending is not permitted: {reason}", do)
    return Finding(name, None if heard else False, f"cannot send: {reason}", "" if heard else _BY_HAND)


def coordinators(known: Known, *, answers: bool) -> Iterator[Finding]:
    """Findings about the coordinators that announce themselves, and about machines with this machine's node id.

    ``answers`` means that the coordinator of this machine was reached, announced or not.
    """
    browser = Browser()
    try:
        browser.find(lambda _: False, _DISCOVER_S)  # waits the whole time, since there may be several
        found = browser.announcements()
    finally:
        browser.close()
    yield judge_coordinators(found, known, answers=answers)
    yield judge_ids(found, known, usable_addresses())


def judge_coordinators(found: Sequence[Announcement], known: Known, *, answers: bool = False) -> Finding:
    """Whether the cluster of this machine is among the announced clusters."""
    name = "announcements"
    if ours := [record for record in found if record.cluster == known.cluster]:
        return Finding(name, True, ", ".join(_described(record) for record in ours))
    heard = ", ".join(_described(record) for record in found)
    if known.cluster is None:
        do = "join one: `edgepp invite` there prints a code" if found else "start one with `edgepp serve`"
        return Finding(name, None, heard or "no coordinator heard", do)
    others = f"; heard: {heard}" if heard else ""
    if answers:
        do = "if other machines do not find it either, run `edgepp join CODE --peer HOST:PORT` there"
        return Finding(name, None, f"the coordinator answers, but does not announce itself here{others}", do)
    do = f"start `edgepp serve` on its machine; if it runs there, {_BY_HAND}"
    return Finding(name, None, f"the coordinator of this cluster is not heard{others}", do)


def judge_ids(found: Sequence[Announcement], known: Known, own: Sequence[str]) -> Finding:
    """Whether another machine announces the node id of this one; ``own`` are the addresses of this machine."""
    bare = {address.partition("%")[0] for address in own}
    for record in found:
        hosts = {address.host.partition("%")[0] for address in record.addresses}
        if record.node == known.node and hosts and not any(_is_own(host, bare) for host in hosts):
            what = f"{_described(record)} uses the node id of this machine"
            do = "if that is another machine, a copy of this one: delete the edgepp configuration there, and join again"
            return Finding("node id", False, what, do)
    return Finding("node id", True if known.node else None, "no other machine uses it")


def _is_own(host: str, own: set[str]) -> bool:
    return host in own or Address(host, 0).is_loopback


def _described(record: Announcement) -> str:
    where = f" at {record.addresses[0]}" if record.addresses else ""
    return f"{record.name}{where} (cluster {record.cluster}, edgepp {record.version})"


def reach(peer: Address) -> Finding:
    """Whether a TCP connection to ``peer`` can be opened."""
    name = f"connection to {peer}"
    try:
        with socket.create_connection((peer.host, peer.port), _CONNECT_S) as sock:
            return Finding(name, True, f"opened, from {sock.getsockname()[0]}")
    except OSError as error:
        return Finding(name, False, *explain(error, peer))


def explain(error: OSError, peer: Address) -> tuple[str, str]:
    """Cause and next step of a failed connection to ``peer``. The macOS branch has not been run on macOS."""
    if isinstance(error, socket.gaierror):
        return f"the name '{peer.host}' is unknown", "check the spelling, or use the IP address of the machine"
    if isinstance(error, ConnectionRefusedError):
        do = f"start `edgepp serve` there, and check that it prints port {peer.port}"
        return "the machine answers, but nothing listens on this port", do
    if isinstance(error, TimeoutError):
        do = f"check the address, and allow TCP ports {peer.port} and {peer.port + 1} in the firewall there"
        return f"no answer for {_CONNECT_S:g} s: a firewall, a wrong address, or a machine that sleeps", do
    if error.errno == errno.EHOSTUNREACH and sys.platform == "darwin":
        return (
            "macOS does not allow this program to use the local network, or no machine has this address",
            _MAC_PERMISSION,
        )
    if error.errno in (errno.EHOSTUNREACH, errno.ENETUNREACH):
        do = "check that both machines are on one network, and the address of that machine"
        return f"no route to it, or no machine has this address ({error.strerror})", do
    return f"no connection: {error.strerror or error}", "check the address and the network"
