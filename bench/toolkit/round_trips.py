"""Round trips of matrices to another process, which handles a frame like a stage, without the model."""

from __future__ import annotations

import argparse
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import zmq

from bench.toolkit.script import program
from edgepp.benchmark.hidden_states import WIDTH
from edgepp.benchmark.report import Spread
from edgepp.child_process import python_command
from edgepp.errors import EdgeppError
from edgepp.wire import codec
from edgepp.wire.address import Address
from edgepp.wire.codec import Array
from edgepp.wire.field_types import Codec
from edgepp.wire.mailbox import Mailbox, Poller
from edgepp.wire.message_codec import decode, encode
from edgepp.wire.messages.data import Forward
from edgepp.wire.security import Gate, KeyPair, Pinned
from edgepp.wire.transport import Link, Listener, Sender

MAX_ROWS = 512
_FRAME_BYTES = MAX_ROWS * WIDTH * 4
_ANSWER_S = 30.0


@dataclass(frozen=True)
class OneWayTrip:
    """Half a round trip of one matrix: seconds of one way, seconds of that in the codec, and sent bytes."""

    total_s: float
    codec_s: float
    sent_bytes: int


def one_way(trips: Sequence[OneWayTrip], nbytes: int) -> dict[str, Any]:
    """Medians of one way in milliseconds, and the rate; ``nbytes`` is the size without a codec."""
    total = Spread.of([trip.total_s for trip in trips])
    codec_s = statistics.median(trip.codec_s for trip in trips)
    return {
        "codec_ms": codec_s * 1e3,
        "transmission_ms": (total.median - codec_s) * 1e3,
        "total_ms": total.median * 1e3,
        "total_ms_spread": [total.low * 1e3, total.high * 1e3],
        "mb_per_s": nbytes / total.median / 1e6,
    }


def serve(host: str) -> None:
    """Run the other process: print a port, answer every frame like a stage, end with standard input.

    The first line of standard input is the public key to admit, or empty for a plain socket. With a key, the public key
    of this process follows the port.
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


class RoundTrips:
    """The near end of a link, which sends matrices to the other process and receives them back."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._poller = Poller[None](link)

    def trip(self, hidden: Array, name: Codec) -> OneWayTrip:
        """Send ``hidden`` (T, D) and wait for its return.

        Raises:
            EdgeppError: the other process does not answer.
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
            wanted_rows=rows,
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
        return OneWayTrip((end - start) / 2, codec_s / 2, sum(map(len, parts)))


@contextmanager
def peer_and_link(*, secure: bool = False) -> Iterator[RoundTrips]:
    """Run the other process and connect to it; the process ends with the block."""
    own = KeyPair.generate() if secure else None
    with peer(own) as (port, server), connected(Address("127.0.0.1", port), own, server) as link:
        yield link


@contextmanager
def peer(own: KeyPair | None = None, host: str = "127.0.0.1", within: Sequence[str] = ()) -> Iterator[tuple[int, str]]:
    """Run the other process, which listens on ``host``; yields its port, and with keys its public key.

    ``within`` is a prefix of its command, such as ``ip netns exec NAME``.
    """
    process = subprocess.Popen(
        [*within, *python_command("bench.toolkit.round_trips", host)],
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
def connected(address: Address, own: KeyPair | None = None, server: str = "") -> Iterator[RoundTrips]:
    """Connect to ``address``; encrypted if keys are given."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    link = Link(context, address, _FRAME_BYTES, None, Pinned(own, server) if own is not None else None)
    try:
        yield RoundTrips(link)
    finally:
        link.close()
        context.term()


def main() -> int:
    """Run the other process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; the parent ends this process
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("host", help="address to listen on")
    serve(parser.parse_args().host)
    return 0


if __name__ == "__main__":
    program(main)
