"""The search for a duplicate of this coordinator: a machine that serves with a copy of this one's ``EDGEPP_HOME``."""

from __future__ import annotations

import logging
import threading

import zmq

from edgepp.cluster.discovery.mdns import Announcement, discover
from edgepp.cluster.identity import Cluster, Identity
from edgepp.errors import EdgeppError, UsageError
from edgepp.wire.address import Address
from edgepp.wire.happy_eyeballs import connect_first
from edgepp.wire.message_codec import encode_payload
from edgepp.wire.messages import MAX_PAYLOAD_BYTES
from edgepp.wire.messages.clients import Call
from edgepp.wire.security import Pinned

log = logging.getLogger("edgepp.coordinator")

_DISCOVER_S = 1.0
_CONNECT_S = 1.0


class DuplicateSearch:
    """A search of the network for a coordinator that has this one's key, in a thread of its own.

    Call ``check`` before this coordinator listens: until then, a process that proves the key is another process. An
    announcement alone proves nothing, since it may be this coordinator's own from before a restart, or anybody's.
    """

    def __init__(self, identity: Identity, cluster: Cluster) -> None:
        """Begin to search, for ``_DISCOVER_S`` seconds, and at most ``_CONNECT_S`` more where a machine is found.

        Where multicast DNS does not work, a duplicate is not found.
        """
        self._identity, self._cluster = identity, cluster
        self._given_up = threading.Event()
        self._found: Address | None = None
        self._thread = threading.Thread(target=self._run, name="duplicate-search", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Wait for the end of the search.

        Raises:
            UsageError: a duplicate of this coordinator serves.
        """
        self._thread.join()
        if self._found is not None:
            raise UsageError(
                f"another machine, at {self._found}, already serves this cluster with a copy of this machine's key",
                "serve on one of the two only; the other can join by a code once its edgepp configuration is deleted",
            )

    def close(self) -> None:
        """Give the search up, and wait for the end of its thread."""
        self._given_up.set()
        self._thread.join()

    def _run(self) -> None:
        announced = discover(self._is_own, _DISCOVER_S, self._given_up, warns=False)
        addresses = [address for one in announced for address in one.addresses]
        if not addresses:
            return
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        pinned = Pinned(self._identity.keys, self._identity.keys.public)
        try:
            link, _ = connect_first(
                context, addresses, Call(0, "status"), _CONNECT_S, MAX_PAYLOAD_BYTES, pinned, encode_payload({}),
                self._given_up.is_set,
            )  # fmt: skip
            self._found = link.address
            link.close()
        except EdgeppError as error:
            log.debug("an announcement of this coordinator, and none that has its key: %s", error)
        finally:
            context.term()

    def _is_own(self, heard: Announcement) -> bool:
        return (heard.cluster, heard.node) == (self._cluster.id, self._identity.node)
