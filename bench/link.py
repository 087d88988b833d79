"""Hidden states between two processes of this machine through the real wire, by size and codec.

    python bench/link.py
    python bench/link.py --secure     also what encrypting a hop costs

The other process does what a stage does with a frame, without the model: receive, decode, encode, send on.
METHODOLOGY.md defines the numbers; the tables have the shape of the origin's (transmission + codec = total).
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import zmq
from measure import Arguments, count, report, say, script

from edgepp.benchmark.hidden_states import WIDTH, noise, real
from edgepp.errors import EdgeppError, ModelError
from edgepp.model.fetch import located
from edgepp.wire import codec
from edgepp.wire.codec import Array
from edgepp.wire.mailbox import Mailbox, Poller
from edgepp.wire.messages import Codec, Forward, decode, encode
from edgepp.wire.security import Gate, KeyPair, Pinned
from edgepp.wire.transport import Address, Link, Listener, Sender

ROWS = (1, 4, 16, 32, 64, 512)
HOPS = 2000
"""Trips behind the one-row figure."""
_FRAME_BYTES = max(ROWS) * WIDTH * 4
_ANSWER_S = 30.0


@dataclass(frozen=True)
class Trip:
    """One matrix there and back, halved: the seconds of one way, those of them in the codec, and bytes sent."""

    total_s: float
    codec_s: float
    sent_bytes: int


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = Arguments(__doc__)
    parser.add_argument("--dtype", choices=tuple(codec.DTYPES), default="float16", help="(%(default)s)")
    parser.add_argument("--rounds", type=count, default=10, help="trips of each kind (%(default)s)")
    parser.add_argument("--model", default="smollm2-135m", help="gives the real hidden states (%(default)s)")
    parser.add_argument("--secure", action="store_true", help="measure the hop encrypted too, trip by trip in turn")
    parser.add_argument("--peer", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--host", default="127.0.0.1", help=argparse.SUPPRESS)
    return parser.parse_args()


def serve(host: str) -> None:
    """Be the other process: print a port, answer every frame as a stage would, end with standard input.

    The first line of standard input says whom to admit, by its public key, and is empty for a plain socket. With one,
    this side's public key follows the port.
    """
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    admitted = sys.stdin.readline().strip()
    keys = KeyPair.generate() if admitted else None
    gate = Gate(context)
    gate.admit([admitted])
    listener = Listener(context, Address(host, 0), _FRAME_BYTES, keys)
    ended: Mailbox[None] = Mailbox()
    threading.Thread(target=_watch_input, args=(ended,), daemon=True).start()
    print(listener.address.port, keys.public if keys is not None else "", flush=True)
    poller = Poller[None](ended, listener)
    while ended not in (ready := poller.wait(60.0)):
        if listener in ready and (received := listener.receive()) is not None:
            _answer(listener, *received)
    listener.close()
    gate.close()
    context.term()


def _watch_input(ended: Mailbox[None]) -> None:
    sys.stdin.read()
    ended.put(None)


def _answer(listener: Listener, sender: Sender, frames: Sequence[memoryview]) -> None:
    frame = decode(frames[0])
    assert isinstance(frame, Forward)
    start = time.perf_counter()
    hidden = codec.decode(frames[1:], frame.rows, frame.width, frame.dtype, frame.codec)
    parts = codec.encode(hidden, frame.codec)
    spent_us = int((time.perf_counter() - start) * 1e6)
    listener.send(sender.route, [encode(frame._replace(compute_us=(spent_us,))), *parts])


class Coordinator:
    """This end of the wire."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._poller = Poller[None](link)

    def trip(self, hidden: Array, name: Codec) -> Trip:
        """Send ``hidden`` (T, D) and wait until it is back.

        Raises:
            EdgeppError: it did not come back.
        """
        rows, width = hidden.shape
        start = time.perf_counter()
        parts = codec.encode(hidden, name)
        encoded = time.perf_counter()
        header = Forward(
            epoch=1,
            sequence=1,
            step=1,
            position=0,
            capacity=rows,
            want=rows,
            rows=rows,
            width=width,
            dtype=codec.dtype_name(hidden.dtype),
            codec=name,
            compute_us=(),
            source=0,
        )
        sent = self._link.send([encode(header), *parts], _ANSWER_S)
        frames = self._link.receive() if sent and self._poller.wait(_ANSWER_S) else None
        if frames is None:
            raise EdgeppError("the other process does not answer")
        answer = decode(frames[0])
        assert isinstance(answer, Forward)
        arrived = time.perf_counter()
        codec.decode(frames[1:], answer.rows, answer.width, answer.dtype, answer.codec)
        end = time.perf_counter()
        codec_s = encoded - start + end - arrived + answer.compute_us[0] / 1e6
        return Trip((end - start) / 2, codec_s / 2, sum(map(len, parts)))


@contextmanager
def coordinator(*, secure: bool = False) -> Iterator[Coordinator]:
    """Both processes; the other one is gone when the block ends."""
    own = KeyPair.generate() if secure else None
    with peer(own) as (port, server), connected(Address("127.0.0.1", port), own, server) as wire:
        yield wire


@contextmanager
def peer(own: KeyPair | None = None, host: str = "127.0.0.1", within: Sequence[str] = ()) -> Iterator[tuple[int, str]]:
    """The other process, which listens on an address of its own: its port, and with keys its public key.

    ``within`` is what its command stands behind, such as ``ip netns exec NAME``.
    """
    process = subprocess.Popen(
        [*within, sys.executable, __file__, "--peer", "--host", host],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{own.public if own is not None else ''}\n")
        process.stdin.flush()
        port, _, server = process.stdout.readline().strip().partition(" ")
        yield int(port), server
    finally:
        process.kill()
        process.communicate()


@contextmanager
def connected(address: Address, own: KeyPair | None = None, server: str = "") -> Iterator[Coordinator]:
    """This end of a wire to ``address``; encrypted with keys."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    link = Link(context, address, _FRAME_BYTES, None, Pinned(own, server) if own is not None else None)
    try:
        yield Coordinator(link)
    finally:
        link.close()
        context.term()


def manual(tokens: int) -> str:
    """Of the Python reference that comes with the interpreter, about so many tokens."""
    return "\n".join(topics.values())[: 4 * tokens]


def measured(options: argparse.Namespace, wire: Coordinator) -> list[dict[str, Any]]:
    """Every size, codec and kind of data in turn, round after round."""
    located(options.model)  # a name that means nothing is a mistake; a model that is not here is none
    data = {"random": noise(options.dtype, max(ROWS))}
    say(f"computing hidden states of {options.model}")
    try:
        data["real"] = real(options.model, options.dtype, max(ROWS), manual)
    except ModelError as error:
        say(f"no real hidden states: {error}{f'; {error.hint}' if error.hint else ''}")
    cases = [(rows, name, kind) for kind in data for rows in ROWS for name in codec.NAMES]
    trips: dict[tuple[int, Codec, str], list[Trip]] = {case: [] for case in cases}
    for turn in range(options.rounds + 1):
        say(f"round {turn} of {options.rounds}" if turn else "warm-up")
        for rows, name, kind in cases:
            wire.trip(data[kind][:rows], name)  # whatever went before, of another size, is out of the caches
            trip = wire.trip(data[kind][:rows], name)
            if turn:
                trips[rows, name, kind].append(trip)
    return [
        {"rows": rows, "width": WIDTH, "dtype": options.dtype, "codec": name, "data": kind}
        | summary(trips[rows, name, kind], data[kind][:rows].nbytes)
        for rows, name, kind in cases
    ]


def summary(trips: Sequence[Trip], nbytes: int) -> dict[str, Any]:
    """One row of the result; ``nbytes`` is the size without a codec."""
    total_s = statistics.median(trip.total_s for trip in trips)
    codec_s = statistics.median(trip.codec_s for trip in trips)
    return {
        "codec_ms": codec_s * 1e3,
        "transmission_ms": (total_s - codec_s) * 1e3,
        "total_ms": total_s * 1e3,
        "total_ms_spread": [min(trip.total_s for trip in trips) * 1e3, max(trip.total_s for trip in trips) * 1e3],
        "mb_s": nbytes / total_s / 1e6,
        "ratio": nbytes / trips[0].sent_bytes,
        "pays_below_mbit_s": max(0.0, (nbytes - trips[0].sent_bytes) * 8e-6 / codec_s),
    }


def hop(wire: Coordinator, secure: Coordinator | None) -> dict[str, Any]:
    """Microseconds of one way of one float16 row without a codec; also encrypted where there is ``secure``."""
    row = noise("float16", 1)
    wires = [wire] if secure is None else [wire, secure]
    ways_us: list[list[float]] = [[] for _ in wires]
    for _ in range(HOPS + HOPS // 10):
        for each, ways in zip(wires, ways_us, strict=True):
            ways.append(each.trip(row, "none").total_s * 1e6)
    plain, *encrypted = (_spread(ways[HOPS // 10 :]) for ways in ways_us)
    if not encrypted:
        return plain
    return {**plain, "secure": encrypted[0], "secure_extra_us": encrypted[0]["median"] - plain["median"]}


def _spread(ways_us: Sequence[float]) -> dict[str, Any]:
    return {"median": statistics.median(ways_us), "p95": float(np.percentile(ways_us, 95)), "min": min(ways_us)}


def table(result: Mapping[str, Any]) -> Iterator[str]:
    """The result for people, one table for each kind of data."""
    for kind in dict.fromkeys(row["data"] for row in result["rows"]):
        yield f"{kind} {result['dtype']} hidden states, one way: transmission + codec = total ms (MB/s; ratio)"
        yield f"{'rows':>6}" + "".join(f"{name:>38}" for name in codec.NAMES)
        for rows in ROWS:
            cells = (row for row in result["rows"] if (row["data"], row["rows"]) == (kind, rows))
            yield f"{rows:>6}" + "".join(
                f"{row['transmission_ms']:.3f} + {row['codec_ms']:.3f} = {row['total_ms']:.3f}"
                f" ({row['mb_s']:.0f}; {row['ratio']:.2f})".rjust(38)
                for row in cells
            )
    for name in codec.NAMES[1:]:
        limits = (row for row in result["rows"] if row["codec"] == name)
        yield f"{name} pays on links below (Mbit/s): " + ", ".join(
            f"{row['rows']} {row['data']} {row['pays_below_mbit_s']:.0f}" for row in limits
        )
    hop_us = result["hop_us"]
    yield f"one way, 1 x {WIDTH} float16, none: median {hop_us['median']:.0f} µs, p95 {hop_us['p95']:.0f} µs"
    if "secure" in hop_us:
        secure = hop_us["secure"]
        yield (
            f"the same encrypted: median {secure['median']:.0f} µs, p95 {secure['p95']:.0f} µs;"
            f" {hop_us['secure_extra_us']:.0f} µs more"
        )


def main() -> None:
    """Measure and report, or be the other process."""
    options = parse()
    if options.peer:
        serve(options.host)
        return
    with ExitStack() as stack:
        wire = stack.enter_context(coordinator())
        rows = measured(options, wire)
        secure = stack.enter_context(coordinator(secure=True)) if options.secure else None
        hop_us = hop(wire, secure)
    result = {"bench": "link", "dtype": options.dtype, "rounds": options.rounds, "rows": rows, "hop_us": hop_us}
    report(result, table(result), json_only=options.json)


if __name__ == "__main__":
    script(main)
