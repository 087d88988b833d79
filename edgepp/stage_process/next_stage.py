"""Joining a ring: the next stage is reached and its link measured in a thread of its own, then handed to compute.

A dead address costs seconds, and the compute thread answers everybody.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

import zmq

from edgepp.errors import EdgeppError, RemoteProtocolError
from edgepp.wire.happy_eyeballs import connect_first
from edgepp.wire.link_rate import PROBE_BYTES, link_rate, measure_echo
from edgepp.wire.mailbox import Mailbox
from edgepp.wire.messages import Attach, Echo, Message, Refused
from edgepp.wire.security import KeyPair, pinned
from edgepp.wire.text_fields import sentence
from edgepp.wire.transport import Address, Link

log = logging.getLogger("edgepp.stage")

MAX_CONNECT_ATTEMPTS = 8
"""Links to a next stage that are being made at a time."""
_ECHO_WAIT_S = 3.0
_LINK_FRAME_BYTES = 1 << 20  # only echoes come back on a link to the next stage

Reply = tuple[bytes, Message]
"""What the control thread is to send, and to whom."""


@dataclass
class ConnectAttempt:
    """One ``Attach`` of the control connection ``control``; the control thread may give it up."""

    control: bytes
    message: Attach
    given_up: bool = False


@dataclass(frozen=True)
class NextStageLink:
    """An attempt whose next stage answers. The link belongs to whoever holds this."""

    attempt: ConnectAttempt
    link: Link | None = None
    """None where there is no next stage."""
    echo_s: float = 0.0
    bytes_per_s: int = 0


class NextStageConnector:
    """Makes the links of the rings that a stage joins. ``begin`` and ``close`` belong to one thread."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        keys: KeyPair | None,
        row_bytes: int,
        frame_bytes: int,
        on_joined: Callable[[NextStageLink], None],
        outbox: Mailbox[Reply],
    ) -> None:
        """``row_bytes`` are those of one hidden state, ``frame_bytes`` the most that a stage of the model takes."""
        self._context = context
        self._keys = keys
        self._row_bytes = row_bytes
        self._probe_bytes = min(PROBE_BYTES, frame_bytes)
        self._on_joined = on_joined
        self._outbox = outbox
        self._threads: dict[threading.Thread, ConnectAttempt] = {}

    def begin(self, attempt: ConnectAttempt) -> None:
        """Answer ``attempt`` in time: ``on_joined`` hears of its link, or the asker of what is wrong.

        Raises:
            RemoteProtocolError: too many are under way.
        """
        if not attempt.message.next_addresses:
            self._on_joined(NextStageLink(attempt))
            return
        self._threads = {thread: one for thread, one in self._threads.items() if thread.is_alive()}
        if len(self._threads) >= MAX_CONNECT_ATTEMPTS:
            raise RemoteProtocolError(f"this stage is joining {MAX_CONNECT_ATTEMPTS} rings already")
        thread = threading.Thread(target=self._join, args=(attempt,), name="joining", daemon=True)
        self._threads[thread] = attempt
        thread.start()

    def close(self) -> None:
        """Give up what is under way."""
        for attempt in self._threads.values():
            attempt.given_up = True
        for thread in self._threads:
            thread.join()

    def _join(self, attempt: ConnectAttempt) -> None:
        try:
            self._on_joined(self._linked(attempt))
        except EdgeppError as error:
            self._outbox.put((attempt.control, Refused(sentence(f"it cannot reach the next stage: {error}"))))
        except Exception as error:  # such as no descriptor left for a socket: this ring is not joined
            log.exception("cannot join a ring")
            self._outbox.put((attempt.control, Refused(sentence(f"it cannot reach the next stage: {error}"))))

    def _linked(self, attempt: ConnectAttempt) -> NextStageLink:
        message = attempt.message
        addresses = [Address.parse(address) for address in message.next_addresses.split(",")]
        hello, protection = Echo(0, reply=False), pinned(self._keys, message.next_key)

        def given_up() -> bool:
            return attempt.given_up

        link, _ = connect_first(
            self._context, addresses, hello, _ECHO_WAIT_S, _LINK_FRAME_BYTES, protection, given_up=given_up
        )
        try:
            echo_s = measure_echo(link, self._row_bytes, _ECHO_WAIT_S, given_up=given_up)
            large_s = measure_echo(link, self._probe_bytes, _ECHO_WAIT_S, rounds=2, given_up=given_up)
            if echo_s is None or large_s is None:
                raise EdgeppError(f"{link.address} does not answer")
        except BaseException:
            link.close()
            raise
        return NextStageLink(attempt, link, echo_s, link_rate(echo_s, large_s, self._probe_bytes))
