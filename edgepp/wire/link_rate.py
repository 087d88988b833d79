"""Measured rate and round-trip time of a link: the listener returns an ``Echo`` at once."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from edgepp.wire.message_codec import decode, encode
from edgepp.wire.messages.data import Echo
from edgepp.wire.transport import Link

PROBE_BYTES = 1 << 18
"""Size of the long echo that measures a rate; longer ones are not returned."""
MAX_ECHO_FRAME_BYTES = 1 << 20
"""Longest frame of a listener that sends nothing but echoes."""
_POLL_S = 0.1


class Echoes(NamedTuple):
    """Round-trip seconds of a short echo and of one of ``long_bytes`` over a link."""

    short_s: float
    long_s: float
    long_bytes: int

    @property
    def bytes_per_s(self) -> int:
        """Rate of the link, one way."""
        return int(2 * self.long_bytes / max(self.long_s - self.short_s, 1e-6))


def measure_link(
    link: Link, sizes: tuple[int, int], wait_s: float, given_up: Callable[[], bool] = lambda: False
) -> Echoes | None:
    """Echoes of both ``sizes`` in bytes, the short one first, to the listener of ``link``.

    None when a round takes longer than ``wait_s`` seconds, or ``given_up()`` becomes true.

    Raises:
        RemoteProtocolError: an answer is not a message.
    """
    short_s = measure_echo(link, sizes[0], wait_s, given_up=given_up)
    long_s = None if short_s is None else measure_echo(link, sizes[1], wait_s, rounds=2, given_up=given_up)
    return None if short_s is None or long_s is None else Echoes(short_s, long_s, sizes[1])


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
