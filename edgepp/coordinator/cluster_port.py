"""The encrypted port of a cluster: its socket, and the gate that lets in the keys of its trust store."""

from __future__ import annotations

import zmq

from edgepp.cluster.identity import Cluster, Identity
from edgepp.cluster.pairing.protocol import listen as listen_for_codes
from edgepp.coordinator.trust_store import TrustStore
from edgepp.errors import EdgeppError, UsageError
from edgepp.events import NodeRefused, OnEvent
from edgepp.wire.address import Address
from edgepp.wire.messages import MAX_PAYLOAD_BYTES
from edgepp.wire.security import Gate
from edgepp.wire.text_fields import is_key
from edgepp.wire.transport import Listener

_PORT_TRIES = 20


class ClusterPort:
    """The bound port; ``listener`` belongs to the coordinator's thread."""

    def __init__(self, identity: Identity, cluster: Cluster, listen: Address, on_event: OnEvent) -> None:
        """Bind ``listen``; nothing is left open after an error. Connections that are refused make events.

        Raises:
            UsageError: the address is taken.
            EdgeppError: the cluster cannot be written to disk.
        """
        self._on_event = on_event
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._gate = Gate(self._context, self._on_refused)
        try:
            self.trust_store = TrustStore(identity, cluster, self._gate)
            self.listener = self._listen(listen, identity)
        except EdgeppError:
            self._gate.close()
            self._context.term()
            raise
        self.address = self.listener.address
        """Where the socket is bound; the host may be ``*``."""
        self.trust_store.remember_address(self.local_address)

    def _listen(self, listen: Address, identity: Identity) -> Listener:
        """The bound socket; any free port is one whose next port, where codes are taken, is free too."""
        tries = 1 if listen.port else _PORT_TRIES
        while True:
            listener = Listener(self._context, listen, MAX_PAYLOAD_BYTES, identity.keys)
            tries -= 1
            if not tries or _is_free(Address(listen.host, listener.address.port + 1)):
                return listener
            listener.close()

    @property
    def local_address(self) -> Address:
        """The address under which this machine's own processes reach the port."""
        everywhere = self.address.host in ("*", "0.0.0.0", "::")  # noqa: S104 - compared, not bound
        return Address("127.0.0.1", self.address.port) if everywhere else self.address

    def close(self) -> None:
        """Close the gate, once ``listener`` is closed."""
        try:
            self._gate.close()
        finally:
            self._context.term()

    def _on_refused(self, host: str, key_or_reason: str) -> None:
        """Report a connection that was refused. Called in the gate's thread."""
        reason = f"its key {key_or_reason[:8]}… is not admitted" if is_key(key_or_reason) else key_or_reason
        self._on_event(NodeRefused("a stranger", host, reason))


def _is_free(address: Address) -> bool:
    try:
        listen_for_codes(address).close()
    except UsageError:
        return False
    return True
