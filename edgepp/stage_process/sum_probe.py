"""Measured cost of a sum over two ranks on two machines, over the sockets that ranks use.

As a process (``python -m edgepp.stage_process.sum_probe``), the probe is one of two ranks that compute nothing. It
reads a ``SumProbeConfig`` from standard input, reports where it listens, reads where the other one does, and adds. Rank
0 reports the result. The process ends when its input ends.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
import zmq

from edgepp.child_process import read_configuration
from edgepp.error_boundary import explained
from edgepp.errors import PeerLost
from edgepp.stage_process.rank_group import RankGroup
from edgepp.stage_process.reports import report
from edgepp.wire.address import Address
from edgepp.wire.security import Gate, KeyPair

CHUNK_ROWS = 64
"""Rows of the larger sum: those of a prefill chunk on a CPU."""
_SUMS = ((1, 150), (CHUNK_ROWS, 30))
"""Rows of the partial sums, and how many sums of these are timed."""
_WARM_UP = 10
ENOUGH_S = 3.0
"""Seconds after which no further sum of one size is timed: a few show the rate of a slow link."""
_READ_BYTES = 2_000_000
"""Bytes that a rank reads before each sum: about what half a layer reads, so that caches are as cold as in a token."""


@dataclass(frozen=True)
class SumProbeConfig:
    """Configuration of a probe process."""

    group: int
    rank: int
    width: int
    listen: str
    awake: bool
    """Whether ranks on this machine wait for each other without sleeping."""
    admit: tuple[str, ...]
    public: str
    secret: str = field(repr=False)


def measure_sums(group: RankGroup, width: int, enough_s: float = ENOUGH_S) -> dict[str, int]:
    """Nanoseconds of a sum of one row (``row_ns``), and of one of ``rows`` rows (``rows_ns``); medians.

    After ``enough_s`` seconds for sums of one size, no further one is timed.

    Raises:
        PeerLost: the other rank is gone, or breaks the protocol.
    """
    found = [_sum_ns(group, step, rows, width, count, enough_s) for step, (rows, count) in enumerate(_SUMS, 1)]
    return {"row_ns": found[0], "rows": CHUNK_ROWS, "rows_ns": found[1]}


def _sum_ns(group: RankGroup, step: int, rows: int, width: int, count: int, enough_s: float) -> int:
    """Median nanoseconds of ``count`` sums of ``rows`` rows, or of as many as end within ``enough_s`` seconds.

    Each rank adds 1 to the first number once it has had enough, so that both end after the same sum.
    """
    other = np.ones(_READ_BYTES // 4, np.float32)
    partial, total = np.zeros((rows, width), np.float32), np.empty((rows, width), np.float32)
    group.begin_step(step)
    times: list[int] = []
    began_s = time.perf_counter()
    while len(times) < _WARM_UP + count:
        other.sum()
        partial[0, 0] = time.perf_counter() - began_s > enough_s
        started_ns = time.perf_counter_ns()
        group.reduce(partial, total)
        times.append(time.perf_counter_ns() - started_ns)
        if total[0, 0]:
            break
    return int(statistics.median(times[_WARM_UP:] or times[-1:]))


def probe(config: SumProbeConfig) -> None:
    """Add with the other rank, and report the result.

    Raises:
        PeerLost: the other rank does not come, or is gone; or the parent has ended.
    """
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    gate = Gate(context)
    gate.admit(config.admit)
    keys, host = KeyPair(config.public, config.secret), Address.parse(config.listen).host
    group = RankGroup(context, config.group, config.rank, 2, config.width, host=host, keys=keys, awake=config.awake)
    try:
        report("rank", address=str(group.address))
        line = sys.stdin.readline()
        if not line:
            raise PeerLost("the parent of the probe has ended")
        threading.Thread(target=_end_with_parent, name="lifeline", daemon=True).start()
        group.connect_told(json.loads(line))
        report("measured", **measure_sums(group, config.width))
        time.sleep(0.2)  # the other rank may still be receiving
    finally:
        group.close()
        gate.close()
        context.term()


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


def main() -> None:
    """Entry point of ``python -m edgepp.stage_process.sum_probe``."""
    if not (line := read_configuration()):
        return  # the parent has ended already
    try:
        probe(SumProbeConfig(**json.loads(line)))
    except Exception as error:  # noqa: BLE001 - the boundary of the process
        with suppress(BrokenPipeError):  # the parent has ended
            report("error", message=str(explained(error)), hint="")
    os._exit(0)  # at once: the thread that reads standard input may still wait


if __name__ == "__main__":
    main()
