"""The search of a node for its coordinator: connect to the address that answers first, then enrol."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

import zmq

from edgepp.cluster.identity import Cluster, Identity
from edgepp.errors import PairingError, PeerLost, RemoteProtocolError
from edgepp.events import CoordinatorLost, OnEvent
from edgepp.wire.address import Address
from edgepp.wire.happy_eyeballs import connect_first
from edgepp.wire.message_codec import decode, encode
from edgepp.wire.messages import MAX_PAYLOAD_BYTES
from edgepp.wire.messages.control import Refused
from edgepp.wire.messages.nodes import Enrol, Enrolled, Expelled, Heartbeat, Leave
from edgepp.wire.security import Pinned
from edgepp.wire.transport import Link

log = logging.getLogger("edgepp.node")

_ATTEMPT_S = 2.0
"""Timeout of one attempt to connect, and of the reply to ``Enrol``."""
_DUPLICATE_GRACE_S = 6.0
"""How long refusals are not final: the coordinator may still know an earlier process of this node, now ended."""


class CoordinatorSearch:
    """Finds the coordinator of one node. Belongs to the node's thread."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        identity: Identity,
        cluster: Cluster,
        addresses: Callable[[], Sequence[Address]],
        heartbeat: Callable[[], Heartbeat],
        enrolment: Callable[[], Enrol],
        on_event: OnEvent,
        sure_addresses: Callable[[], Sequence[Address]] | None = None,
    ) -> None:
        """``addresses`` returns where the coordinator may be now; ``heartbeat`` and ``enrolment`` make messages.

        ``sure_addresses`` returns those that no stranger can have announced; None where that is all of them. Only there
        a refused connection ends the search.
        """
        self._context = context
        self._identity = identity
        self._cluster = cluster
        self._addresses = addresses
        self._sure_addresses = sure_addresses or addresses
        self._heartbeat = heartbeat
        self._enrolment = enrolment
        self._on_event = on_event

    def find(self, is_closing: Callable[[], bool]) -> Link | None:
        """Link to the coordinator after enrolling; None once ``is_closing`` returns True.

        Raises:
            PairingError: The coordinator refuses this node.
        """
        refused_s = 0.0
        reported = False
        while not is_closing():
            try:
                link = self._reach()
            except (PeerLost, RemoteProtocolError) as error:
                refused_s = 0.0
                if not reported:
                    reported = True
                    self._on_event(CoordinatorLost(self._cluster.coordinator.name, str(error)))
                time.sleep(0.2)
                continue
            try:
                reason = self._enrol(link)
            except BaseException:
                link.close()
                raise
            if reason is None:
                return link
            link.close()
            refused_s = (refused_s or time.monotonic()) if reason else 0.0
            if reason and time.monotonic() - refused_s > _DUPLICATE_GRACE_S:
                raise PairingError(
                    f"{self._cluster.coordinator.name} refused this node: {reason}",
                    "end the other node, or give this node its own configuration with EDGEPP_HOME",
                )
            time.sleep(0.5)
        return None

    def _reach(self) -> Link:
        """Link to the coordinator at the address that answers first; all get a heartbeat, which changes nothing."""
        addresses, sure = self._addresses(), self._sure_addresses()
        try:
            return self._first_of(addresses)
        except PairingError:
            if set(addresses) <= set(sure):
                raise
            return self._first_of(sure)  # whoever refuses has proved no key

    def _first_of(self, addresses: Sequence[Address]) -> Link:
        protection = Pinned(self._identity.keys, self._cluster.coordinator.key)
        return connect_first(self._context, addresses, self._heartbeat(), _ATTEMPT_S, MAX_PAYLOAD_BYTES, protection)[0]

    def _enrol(self, link: Link) -> str | None:
        """Enrol on ``link``; None for an enrolled node, else the reason of the refusal, empty without a reply."""
        enrolment = self._enrolment()
        link.send([encode(enrolment)], _ATTEMPT_S)
        until_s = time.monotonic() + _ATTEMPT_S
        while time.monotonic() < until_s:
            frames = link.receive(0.2)
            if frames is None:
                continue
            match decode(frames[0]):
                case Enrolled():
                    return None
                case Refused(reason=reason):
                    return reason
                case Expelled(reason=reason):
                    link.send([encode(Leave(enrolment.incarnation))])  # the coordinator waits for it before it closes
                    raise expulsion(self._cluster, reason)
                case message:
                    log.debug("a %s message before the reply to Enrol", type(message).__name__)
        return ""


def expulsion(cluster: Cluster, reason: str) -> PairingError:
    """The error that ends a node which the coordinator expelled for ``reason``."""
    return PairingError(
        f"{cluster.coordinator.name}: {reason}",
        "pair this machine again: `edgepp invite` there, then `edgepp join CODE`",
    )
