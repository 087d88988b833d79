"""Links to other stages: each is made in a thread of its own, then handed to the compute thread.

A dead address costs seconds, in which the compute thread must serve other rings.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import zmq

from edgepp.cluster.discovery.network_paths import fastest_first
from edgepp.errors import EdgeppError, RemoteProtocolError
from edgepp.stage_process.bulk_link import BulkAttempt, BulkConnected
from edgepp.wire.address import Address
from edgepp.wire.happy_eyeballs import connect_first
from edgepp.wire.link_rate import MAX_ECHO_FRAME_BYTES, PROBE_BYTES, Echoes, measure_link
from edgepp.wire.mailbox import Mailbox
from edgepp.wire.messages import Message
from edgepp.wire.messages.control import Attach, Refused, Unreached
from edgepp.wire.messages.data import Echo
from edgepp.wire.security import KeyPair, pinned
from edgepp.wire.text_fields import sentence
from edgepp.wire.transport import Link

log = logging.getLogger("edgepp.stage")

MAX_CONNECT_ATTEMPTS = 8
"""Links that are made at the same time."""
_ECHO_WAIT_S = 3.0

Reply = tuple[bytes, Message]
"""(route, message) for the control thread to send."""


@dataclass
class ConnectAttempt:
    """One ``Attach`` message; the control thread sets ``given_up`` where the ring is forgotten meanwhile."""

    control: bytes
    """Route of the control connection of the ``Attach``."""
    message: Attach
    given_up: bool = False


@dataclass(frozen=True)
class NextStageLink:
    """A successful attempt. Whoever holds this object has to close the link."""

    attempt: ConnectAttempt
    link: Link | None = None
    """None for the last stage."""
    echo_s: float = 0.0
    """Round-trip time of one hidden state."""
    bytes_per_s: int = 0
    """Measured rate, one way."""


A = TypeVar("A", ConnectAttempt, BulkAttempt)


class NextStageConnector:
    """Makes links to next stages, which it measures, and links for bulk data. Safe from any thread."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        keys: KeyPair | None,
        row_bytes: int,
        frame_bytes: int,
        on_connected: Callable[[NextStageLink | BulkConnected], None],
        outbox: Mailbox[Reply],
    ) -> None:
        """Prepare to make links.

        ``row_bytes`` is the size of one hidden state, ``frame_bytes`` the longest frame that a stage accepts.
        ``on_connected`` gets each link, in any thread; ``outbox`` gets an ``Unreached`` or ``Refused`` for each
        ``Attach`` that fails.
        """
        self._context = context
        self._keys = keys
        self._echo_sizes = (row_bytes, min(PROBE_BYTES, frame_bytes))
        self._on_connected = on_connected
        self._outbox = outbox
        self._lock = threading.Lock()
        self._threads: dict[threading.Thread, ConnectAttempt | BulkAttempt] = {}

    def begin(self, attempt: ConnectAttempt) -> None:
        """Begin ``attempt``; calls ``on_connected`` at once where there is no next stage.

        Raises:
            RemoteProtocolError: ``MAX_CONNECT_ATTEMPTS`` are under way.
        """
        if not attempt.message.next_addresses:
            self._on_connected(NextStageLink(attempt))
            return
        if not self._start(attempt, self._run):
            raise RemoteProtocolError(f"this stage is joining {MAX_CONNECT_ATTEMPTS} rings already")

    def begin_bulk(self, attempt: BulkAttempt) -> None:
        """Begin to connect for bulk data; the ``BulkConnected`` tells of a failure too."""
        if not self._start(attempt, self._run_bulk):
            self._on_connected(BulkConnected(attempt, None, f"{MAX_CONNECT_ATTEMPTS} links are being made already"))

    def _start(self, attempt: A, run: Callable[[A], None]) -> bool:
        """Start a thread for an attempt; False where ``MAX_CONNECT_ATTEMPTS`` are under way."""
        with self._lock:
            self._threads = {thread: one for thread, one in self._threads.items() if thread.is_alive()}
            if len(self._threads) >= MAX_CONNECT_ATTEMPTS:
                return False
            thread = threading.Thread(target=run, args=(attempt,), name="connect-stage", daemon=True)
            self._threads[thread] = attempt
            thread.start()
            return True

    def close(self) -> None:
        """Give up all attempts and wait for their threads."""
        with self._lock:
            threads = dict(self._threads)
        for attempt in threads.values():
            attempt.given_up = True
        for thread in threads:
            thread.join()

    def _run(self, attempt: ConnectAttempt) -> None:
        try:
            self._on_connected(self._connect(attempt))
        except EdgeppError as error:
            self._outbox.put((attempt.control, Unreached(attempt.message.epoch, sentence(error))))
        except Exception as error:  # such as no file descriptor left for a socket
            log.exception("the link to a next stage failed")
            self._outbox.put((attempt.control, Refused(sentence(f"this stage cannot reach the next stage: {error}"))))

    def _run_bulk(self, attempt: BulkAttempt) -> None:
        link, reason = None, ""
        try:
            link, _ = self._link(attempt.addresses, attempt.key, lambda: attempt.given_up)
        except EdgeppError as error:
            reason = str(error)
        except Exception as error:  # such as no file descriptor left for a socket
            log.exception("the link to a stage failed")
            reason = str(error)
        self._on_connected(BulkConnected(attempt, link, reason))

    def _link(self, addresses: str, key: str, given_up: Callable[[], bool]) -> tuple[Link, Echoes | None]:
        """A link by the fastest of ``addresses`` where several networks lead there, else by the first that answers.

        With the echoes over it, where they were measured for the choice.

        Raises:
            EdgeppError: None answers, or this machine has no keys.
        """
        parsed = [Address.parse(address) for address in addresses.split(",")]
        probe, keys = Echo(0, reply=False), pinned(self._keys, key)
        ordered, echoes = fastest_first(self._context, parsed, keys, self._echo_sizes, given_up)
        link, _ = connect_first(
            self._context, ordered, probe, _ECHO_WAIT_S, MAX_ECHO_FRAME_BYTES, keys, given_up=given_up
        )
        return link, echoes if link.address == ordered[0] else None

    def _connect(self, attempt: ConnectAttempt) -> NextStageLink:
        message = attempt.message

        def given_up() -> bool:
            return attempt.given_up

        link, echoes = self._link(message.next_addresses, message.next_key, given_up)
        try:
            echoes = echoes or measure_link(link, self._echo_sizes, _ECHO_WAIT_S, given_up)
            if echoes is None:
                raise EdgeppError(f"{link.address} does not answer")
        except BaseException:
            link.close()
            raise
        return NextStageLink(attempt, link, echoes.short_s, echoes.bytes_per_s)
