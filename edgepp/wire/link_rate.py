"""How fast a link is: what its listener sends back at once, timed."""

from __future__ import annotations

import time
from collections.abc import Callable

from edgepp.wire.message_codec import decode, encode
from edgepp.wire.messages import Echo
from edgepp.wire.transport import Link

PROBE_BYTES = 1 << 18
"""What is sent to and fro to find out how fast a link is, where so long a frame may be sent; no more is echoed."""
_TURN_S = 0.1


def link_rate(short_s: float, long_s: float, long_bytes: int) -> int:
    """Bytes a second one way, from how long an echo of a hidden state and one of ``long_bytes`` take."""
    return int(2 * long_bytes / max(long_s - short_s, 1e-6))


def measure_echo(
    link: Link, payload_bytes: int, wait_s: float, rounds: int = 5, given_up: Callable[[], bool] = lambda: False
) -> float | None:
    """Seconds that ``payload_bytes`` take to the listener of ``link`` and back, the best of some rounds.

    None when a round takes longer than ``wait_s``, or is ``given_up``: the listener cannot be reached, or does not
    answer.

    Raises:
        RemoteProtocolError: what comes back is no message.
    """
    payload = bytes(payload_bytes)
    best: float | None = None
    for nonce in range(rounds):
        start = time.perf_counter()
        if not link.send([encode(Echo(nonce, reply=False)), payload], wait_s):
            return None
        while (frames := link.receive(_TURN_S)) is None or decode(frames[0]) != Echo(nonce, reply=True):
            if time.perf_counter() - start > wait_s or given_up():  # an answer that is not ours waits no longer
                return None
        took = time.perf_counter() - start
        best = took if best is None else min(best, took)
    return best
