"""How machines that are no members yet find the way in: the cluster's announcement, and the desk for invitations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edgepp.cluster.discovery.mdns import Announcer
from edgepp.cluster.discovery.network_interfaces import Watch, usable_addresses
from edgepp.cluster.identity import Cluster, Identity, PairedNode
from edgepp.cluster.pairing.server import PairingServer
from edgepp.events import OnEvent
from edgepp.wire.transport import Address


class JoinEndpoint:
    """The one of the coordinator at ``address``; announced with the numbers of the invitations that are open."""

    def __init__(
        self,
        identity: Identity,
        address: Address,
        cluster: Callable[[], Cluster],
        on_paired: Callable[[PairedNode], None],
        on_event: OnEvent,
    ) -> None:
        """The three callables are ``PairingServer``'s, called in its threads."""
        self._port = address.port
        self._announcer = None  # nobody else could reach a loopback address
        if not address.is_loopback:
            self._announcer = Announcer(cluster().id, identity.node, identity.name, address.port)
        self._pairing_server = PairingServer(address, cluster, on_paired, on_event)
        self._watch = Watch()
        self._invitations: tuple[int, ...] = ()

    def invite(self) -> dict[str, Any]:
        """A new invitation, as it is told to people.

        Raises:
            UsageError: too many are open, or the desk's port is taken.
        """
        return {"code": self._pairing_server.invite(), "port": self._port, "addresses": usable_addresses()}

    def announce(self) -> None:
        """Keep the announcement as this machine's addresses and the invitations are now."""
        if self._announcer is None:
            return
        if self._watch.changed():
            self._announcer.refresh()
        if (numbers := self._pairing_server.numbers()) != self._invitations:
            self._invitations = numbers
            self._announcer.update(numbers)

    def close(self) -> None:
        """Void what is open, and be announced no more."""
        self._pairing_server.close()
        if self._announcer is not None:
            self._announcer.close()
