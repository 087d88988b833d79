"""Announcing and finding coordinators by multicast DNS.

An announcement is a hint: any machine on the network can send one, and it may outlive its coordinator. ``announcement``
checks its form; the connection proves the coordinator's key. Everything else works without multicast, with the
coordinator's address given by `--peer HOST:PORT`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from edgepp.cluster.discovery.announcement import (
    MAX_ADDRESSES,
    Announcement,
    announcement_text,
    instance_name,
    parse_announcement,
)
from edgepp.cluster.discovery.mdns_responder import MdnsResponder
from edgepp.cluster.discovery.network_interfaces import usable_addresses

if TYPE_CHECKING:
    from zeroconf import ServiceInfo, Zeroconf

__all__ = ["SERVICE", "Announcement", "Announcer", "Browser", "discover"]

SERVICE = "_edgepp._tcp.local."
_MAX_NAMES = 256  # of coordinators, true and false; reading the records of one takes up to 3 ms, of all at each look
_TTL_S = 1200  # browsers ask again after three quarters of it; zeroconf accepts no less than 1125 s
_RESOLVE_MS = 1000
_MAX_RESOLVES = 6
"""Questions for the records of one name; the wait after each is twice the one before, from one second."""
_SETTLE_S = 0.2  # to wait for others after the first accepted announcement


class Announcer(MdnsResponder):
    """Announces the coordinator until closed. Only ``close`` blocks."""

    def __init__(self, cluster: str, node: str, name: str, port: int) -> None:
        """Begin to announce the cluster port ``port``; the ids ``cluster`` and ``node`` have 16 hexadecimal digits."""
        self._cluster, self._node = cluster, node
        self._invitations: tuple[int, ...] = ()
        self._instance = f"{instance_name(name, node)}.{SERVICE}"
        self._server = f"edgepp-{node}.local."  # not the machine's own host name, whose records belong to the system
        self._port = port
        self._outdated = False
        super().__init__("other machines do not find this one automatically")

    def update(self, invitations: Sequence[int]) -> None:
        """Announce the numbers of the open invitations, at most the newest 16."""
        with self._changed:
            self._invitations = tuple(invitations)
            self._outdated = True
            self._changed.notify_all()

    def _begin(self, zeroconf: Zeroconf) -> None:
        # The name contains the node's id, so probing for another owner, which takes 1.5 s, is not needed.
        zeroconf.register_service(self._info(), cooperating_responders=True)

    def _has_work(self) -> bool:
        return self._outdated

    def _work(self, zeroconf: Zeroconf) -> None:
        zeroconf.update_service(self._info())

    def _info(self) -> ServiceInfo:
        from zeroconf import ServiceInfo

        with self._changed:
            invitations, self._outdated = self._invitations, False
        addresses = [one.partition("%")[0] for one in usable_addresses()] or ["127.0.0.1"]
        return ServiceInfo(
            SERVICE,
            self._instance,
            self._port,
            properties=announcement_text(self._cluster, self._node, invitations),
            server=self._server,
            host_ttl=_TTL_S,
            other_ttl=_TTL_S,
            parsed_addresses=addresses[:MAX_ADDRESSES],
        )


class Browser(MdnsResponder):
    """Keeps the announcements of all coordinators on the network up to date, until closed."""

    def __init__(self, *, warns: bool = True) -> None:
        """Begin to listen. ``warns``: whether a warning is logged where multicast does not work."""
        self._names: dict[str, None] = {}
        self._unresolved: dict[str, tuple[int, float]] = {}
        """Names whose records did not arrive: how often they were asked for, and when to ask next (monotonic)."""
        super().__init__("other machines are not found automatically" if warns else "")

    def announcements(self) -> tuple[Announcement, ...]:
        """The present announcements, in no order."""
        with self._changed:
            zeroconf, names = self._zeroconf, tuple(self._names)
        if zeroconf is None:
            return ()
        found = (self._cached(zeroconf, name) for name in names)
        return tuple(announcement for announcement in found if announcement is not None)

    def find(
        self, accept: Callable[[Announcement], bool], wait_s: float, given_up: threading.Event | None = None
    ) -> tuple[Announcement, ...]:
        """Wait until ``accept`` is true of an announcement, and 0.2 s longer for others; returns all accepted ones.

        The wait ends after ``wait_s`` seconds, or when ``given_up`` is set, with what was found.
        """
        given_up = given_up or threading.Event()
        deadline_s, settled = time.monotonic() + wait_s, False
        while True:
            found = tuple(one for one in self.announcements() if accept(one))
            left_s = deadline_s - time.monotonic()
            if settled or left_s <= 0 or given_up.is_set():
                return found
            if found:
                settled = True
                given_up.wait(min(_SETTLE_S, left_s))
            else:
                given_up.wait(min(0.05, left_s))

    # zeroconf calls these three from a thread of its own.

    def add_service(self, zc: Zeroconf, _type: str, name: str) -> None:
        """Note a new name, or changed records of a name."""
        resolved = self._cached(zc, name) is not None
        with self._changed:
            if len(self._names) >= _MAX_NAMES and name not in self._names:
                return
            self._names[name] = None
            if not resolved:
                self._unresolved.setdefault(name, (0, 0.0))
                self._changed.notify_all()

    update_service = add_service

    def remove_service(self, _zc: Zeroconf, _type: str, name: str) -> None:
        """Forget a name whose owner said goodbye, or whose records have expired."""
        with self._changed:
            self._names.pop(name, None)
            self._unresolved.pop(name, None)

    def _begin(self, zeroconf: Zeroconf) -> None:
        with self._changed:
            self._names.clear()
            self._unresolved.clear()
        zeroconf.add_service_listener(SERVICE, self)  # type: ignore[arg-type]  # has its methods

    def _has_work(self) -> bool:
        return any(due_s <= time.monotonic() for _, due_s in self._unresolved.values())

    def _wait_s(self) -> float | None:
        due = [due_s for _, due_s in self._unresolved.values()] if self._zeroconf is not None else []
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _work(self, zeroconf: Zeroconf) -> None:
        """Ask for the records that did not arrive with a name: later answers leave out what this machine knows."""
        with self._changed:
            name = min(self._unresolved, key=lambda one: self._unresolved[one][1])
            asked = self._unresolved[name][0] + 1
        found = zeroconf.get_service_info(SERVICE, name, _RESOLVE_MS) is not None
        with self._changed:
            if found or asked >= _MAX_RESOLVES:
                self._unresolved.pop(name, None)
            elif name in self._unresolved:
                self._unresolved[name] = asked, time.monotonic() + 2.0 ** (asked - 1)

    @staticmethod
    def _cached(zeroconf: Zeroconf, name: str) -> Announcement | None:
        from zeroconf import ServiceInfo

        info = ServiceInfo(SERVICE, name)
        if not info.load_from_cache(zeroconf):
            return None
        instance = name.removesuffix(f".{SERVICE}")
        return parse_announcement(instance, info.port, info.properties, info.parsed_scoped_addresses())


def discover(
    accept: Callable[[Announcement], bool],
    wait_s: float,
    given_up: threading.Event | None = None,
    *,
    warns: bool = True,
) -> tuple[Announcement, ...]:
    """Search the network once, until ``given_up`` or for ``wait_s`` seconds; returns the accepted announcements.

    ``warns``: whether a warning is logged where multicast does not work.
    """
    browser = Browser(warns=warns)
    try:
        return browser.find(accept, wait_s, given_up)
    finally:
        browser.close()
