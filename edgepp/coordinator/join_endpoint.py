"""Announcement of the cluster on the network, and its pairing server: how new machines find and join it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edgepp.cluster.discovery.mdns import Announcer
from edgepp.cluster.discovery.network_interfaces import AddressWatch, usable_addresses
from edgepp.cluster.identity import Cluster, Identity, PairedNode
from edgepp.cluster.pairing.invitations import INVITATION_S
from edgepp.cluster.pairing.server import PairingServer
from edgepp.events import OnEvent
from edgepp.wire.address import Address


class JoinEndpoint:
    """Announces the coordinator with the numbers of its open invitations, and takes invitation codes."""

    def __init__(
        self,
        identity: Identity,
        address: Address,
        cluster: Callable[[], Cluster],
        on_paired: Callable[[PairedNode], None],
        on_event: OnEvent,
    ) -> None:
        """Begin to announce the coordinator at ``address``.

        ``cluster`` gives the cluster to join, ``on_paired`` takes a node that proved a code, ``on_event`` takes events;
        all three are called in threads of the pairing server.
        """
        self._host, self._port = address.host, address.port
        self._announcer = None  # no other machine reaches a loopback address
        if not address.is_loopback:
            self._announcer = Announcer(cluster().id, identity.node, identity.name, address.port)
        self._pairing_server = PairingServer(address, cluster, on_paired, on_event)
        self._watch = AddressWatch()
        self._invitations: tuple[int, ...] = ()

    def invite(self) -> dict[str, Any]:
        """Open an invitation; returns its ``code`` and life, and the ``port`` and ``addresses`` of the coordinator.

        Raises:
            UsageError: too many invitations are open, or the pairing port is taken.
        """
        code = self._pairing_server.invite()
        addresses = usable_addresses() if self._announcer is not None else [self._host]
        return {"code": code, "port": self._port, "addresses": addresses, "expires_in_s": INVITATION_S}

    def announce(self) -> None:
        """Update the announcement when this machine's addresses or the open invitations have changed."""
        if self._announcer is None:
            return
        if self._watch.changed():
            self._announcer.refresh()
        if (numbers := self._pairing_server.numbers()) != self._invitations:
            self._invitations = numbers
            self._announcer.update(numbers)

    def close(self) -> None:
        """Close all invitations, and end the announcement."""
        self._pairing_server.close()
        if self._announcer is not None:
            self._announcer.close()
