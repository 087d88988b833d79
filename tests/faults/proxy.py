"""A proxy in front of one stage on plain sockets: it decodes what passes and damages the frames that a test chooses.

Coordinator and previous stage connect to the proxy, which puts its own data port into the stage's ``Welcome``.
Each of their connections gets a connection of its own to the stage, with the same routing id.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import zmq

from edgepp.errors import RemoteProtocolError
from edgepp.wire.address import Address
from edgepp.wire.message_codec import decode, encode
from edgepp.wire.messages import Message
from edgepp.wire.messages.control import Welcome

Frames = list[bytes]
Way = Literal["in", "out"]
"""Towards the stage, or away from it."""
Pick = Callable[[Message], bool]
Act = Callable[[Frames], Sequence[Frames]]
"""Makes of one message those that are sent in its place: none, one or several."""


class Damage:
    """Damages the messages that ``pick`` chooses: those numbered ``numbers``, counted from 0 among the chosen."""

    def __init__(self, way: Way, pick: Pick, act: Act, numbers: Iterable[int] = (0,)) -> None:
        self.way, self._pick, self._act, self._numbers = way, pick, act, frozenset(numbers)
        self._seen = 0
        self.done = threading.Event()
        """Set once a message was damaged."""

    def apply(self, message: Message, frames: Frames) -> Sequence[Frames]:
        """The messages that are sent in place of ``frames``, the frames of ``message``."""
        if not self._pick(message):
            return [frames]
        number, self._seen = self._seen, self._seen + 1
        if number not in self._numbers:
            return [frames]
        self.done.set()
        return self._act(frames)


@dataclass
class _Side:
    """One of the stage's two sockets as others see it, and the connections to the stage by the route of the sender."""

    listener: zmq.Socket[bytes]
    stage: Address
    upstream: dict[bytes, zmq.Socket[bytes]]


class FrameProxy(threading.Thread):
    """Stands for the stage at ``stage`` until closed; ``damage`` may be set at any time."""

    def __init__(self, stage: Address) -> None:
        super().__init__(name="frame-proxy", daemon=True)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._poller = zmq.Poller()
        self._sides: list[_Side] = []
        self._ends: dict[zmq.Socket[bytes], tuple[_Side, bytes]] = {}
        self._closing = threading.Event()
        self._host = stage.host
        self.damage: Damage | None = None
        self.failed: Exception | None = None
        self.address = self._listen(stage)
        self.start()

    def run(self) -> None:
        """Pass on messages until closed."""
        try:
            while not self._closing.is_set():
                for socket, _ in self._poller.poll(50):
                    self._take(socket)
        except Exception as error:  # noqa: BLE001 - the test shows it when it closes the proxy
            self.failed = error
        for socket in [*(side.listener for side in self._sides), *self._ends]:
            socket.close(0)
        self._context.term()

    def close(self) -> None:
        """End the thread, and raise what went wrong in it."""
        self._closing.set()
        self.join()
        if self.failed is not None:
            raise self.failed

    def _listen(self, stage: Address) -> Address:
        listener = self._context.socket(zmq.ROUTER)
        port = listener.bind_to_random_port(f"tcp://{self._host}")
        self._sides.append(_Side(listener, stage, {}))
        self._poller.register(listener, zmq.POLLIN)
        return Address(self._host, port)

    def _take(self, socket: zmq.Socket[bytes]) -> None:
        side = next((side for side in self._sides if side.listener is socket), None)
        if side is not None:
            route, *frames = socket.recv_multipart()
            upstream = side.upstream.get(route) or self._connect(side, route)
            for sent in self._through("in", frames):
                upstream.send_multipart(sent)
        else:
            side, route = self._ends[socket]
            for sent in self._through("out", socket.recv_multipart()):
                side.listener.send_multipart([route, *sent])

    def _connect(self, side: _Side, route: bytes) -> zmq.Socket[bytes]:
        upstream = self._context.socket(zmq.DEALER)
        if route[:1] != b"\0":  # ZeroMQ's own choice, which may not be repeated
            upstream.setsockopt(zmq.ROUTING_ID, route)
        upstream.connect(side.stage.endpoint)
        side.upstream[route] = upstream
        self._ends[upstream] = side, route
        self._poller.register(upstream, zmq.POLLIN)
        return upstream

    def _through(self, way: Way, frames: Frames) -> Sequence[Frames]:
        try:
            message = decode(frames[0])
        except RemoteProtocolError:
            return [frames]
        if isinstance(message, Welcome):
            message = message._replace(data_port=self._data_port(message.data_port))
            frames = [encode(message), *frames[1:]]
        damage = self.damage
        return damage.apply(message, frames) if damage is not None and damage.way == way else [frames]

    def _data_port(self, stage_port: int) -> int:
        """Port of the proxy for the stage's data socket, which is opened when the stage first names its own."""
        for side in self._sides[1:]:
            if side.stage.port == stage_port:
                return int(side.listener.getsockopt_string(zmq.LAST_ENDPOINT).rpartition(":")[2])
        return self._listen(Address(self._host, stage_port)).port


def drop(_: Frames) -> Sequence[Frames]:
    """Lose the message."""
    return []


def repeat(frames: Frames) -> Sequence[Frames]:
    """Send the message twice."""
    return [frames, frames]


def cut_header(frames: Frames) -> Sequence[Frames]:
    """Leave out the last byte of the header."""
    return [[frames[0][:-1], *frames[1:]]]


def cut_tensor(frames: Frames) -> Sequence[Frames]:
    """Leave out the last four bytes of the tensor."""
    return [[*frames[:-1], frames[-1][:-4]]]


def flip_header(frames: Frames) -> Sequence[Frames]:
    """Turn over one bit of the header's kind, so that the message means nothing."""
    return [[flipped(frames[0], 8 * 6), *frames[1:]]]


def flip_tensor(frames: Frames) -> Sequence[Frames]:
    """Turn over the highest bit of the exponent of the tensor's last float32."""
    return [[*frames[:-1], flipped(frames[-1], 8 * len(frames[-1]) - 2)]]


def nan(frames: Frames) -> Sequence[Frames]:
    """Make the first value of the tensor, a float32, not a number."""
    return [[*frames[:-1], b"\x00\x00\xc0\x7f" + frames[-1][4:]]]


class Swap:
    """Holds back the first message until the next one has been sent: two messages in the wrong order."""

    def __init__(self) -> None:
        self._held: Frames | None = None

    def __call__(self, frames: Frames) -> Sequence[Frames]:
        if self._held is None:
            self._held = frames
            return []
        return [frames, self._held]


def flipped(frame: bytes, bit: int) -> bytes:
    """The frame with one bit turned over; bits count from the lowest of the first byte."""
    changed = bytearray(frame)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)
