"""Measured rate and round-trip time of a link: the listener returns an ``Echo`` at once."""

from __future__ import annotations

import time
from collections.abc import Callable

from edgepp.wire.message_codec import decode, encode
from edgepp.wire.messages.data import Echo
from edgepp.wire.transport import Link

PROBE_BYTES = 1 << 18
"""Size of the long echo that measures a rate; longer ones are not returned."""
MAX_ECHO_FRAME_BYTES = 1 << 20
"""Longest frame of a listener that sends nothing but echoes."""
_POLL_S = 0.1


def link_rate(short_s: float, long_s: float, long_bytes: int) -> int:
    """Bytes per second one way, from the round-trip times of a short echo and of an echo of ``long_bytes``."""
    return int(2 * long_bytes / max(long_s - short_s, 1e-6))


def measure_echo(
    link: Link, payload_bytes: int, wait_s: float, rounds: int = 5, given_up: Callable[[], bool] = lambda: False
) -> float | None:
    """Round-trip time of ``payload_bytes`` to the listener of ``link``, in seconds; the shortest of ``rounds``.

    None when a round takes longer than ``wait_s`` seconds, or ``given_up()`` becomes true.

    Raises:
        RemoteProtocolError: The answer is not a message.
    """
    payload = bytes(payload_bytes)
    best: float | None = None
    for nonce in range(rounds):
        start = time.perf_counter()
        if not link.send([encode(Echo(nonce, reply=False)), payload], wait_s):
            return None
        while (frames := link.receive(_POLL_S)) is None or decode(frames[0]) != Echo(nonce, reply=True):
            if time.perf_counter() - start > wait_s or given_up():  # checked also between answers to other messages
                return None
        took = time.perf_counter() - start
        best = took if best is None else min(best, took)
    return best
