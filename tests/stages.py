"""One stage without sockets, threads or weights; a test drives the work of its control and compute threads."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from edgepp.backend.base import StepInterrupted
from edgepp.layer_range import LayerRange
from edgepp.stage_process.compute_thread import ComputeThread
from edgepp.stage_process.control_thread import ControlThread
from edgepp.stage_process.model_runner import ModelRunner
from edgepp.stage_process.next_stage import NextStageLink
from edgepp.wire.message_codec import decode, encode
from edgepp.wire.messages import Message
from edgepp.wire.messages.control import Attach, Fault, Welcome
from edgepp.wire.messages.data import Batch, Forward
from edgepp.wire.messages.recovery import Push
from edgepp.wire.transport import Sender
from tests.wire import KEYS

WIDTH = 8
DRIVER, GUEST = Sender(b"driver", KEYS[0], "10.0.0.1"), Sender(b"guest", KEYS[1], "10.0.0.2")
WELCOME = Welcome(
    "n", 1, 5721, "m", "f" * 16, "", 0, 4, 4, WIDTH, 64, "onnx", "cpu", "float32", False, 8, 1, 1, 1, rewinds=True
)
ATTACH = Attach(1, 0, "", "", b"c1".hex(), "none", 0, KEYS[1])
PUSH = Push(1, 1, "kv", 0, 4, 0, 1, "10.0.0.9:5721", KEYS[2], 2)


def forward(sequence: int, position: int = 0, rows: int = 1) -> Forward:
    return Forward(1, sequence, 0, position, 64, 0, 1, rows, WIDTH, "float32", "none", ())


class FakeListener:
    """A socket whose messages the test puts in and takes out."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Sender, list[memoryview]]] = []
        self.sent: list[tuple[bytes, Message]] = []
        self.socket = None

    def put(self, sender: Sender, frames: Sequence[bytes]) -> None:
        self.waiting.append((sender, [memoryview(frame) for frame in frames]))

    def receive(self) -> tuple[Sender, list[memoryview]] | None:
        return self.waiting.pop(0) if self.waiting else None

    def send(self, route: bytes, frames: Sequence[bytes | memoryview]) -> bool:
        self.sent.append((route, decode(frames[0])))
        return True

    def close(self) -> None:
        """Nothing is open."""


class FakeModel:
    """Layers that return what they are given; sequence lengths are kept as a real cache would."""

    hidden_size, dtype, kv_bytes, chunk, rewinds = WIDTH, "float32", 0, 8, True
    layers, kv_layout = LayerRange(0, 4), ""

    def __init__(self) -> None:
        self.lengths: dict[int, int] = {}
        self.broken = False
        self.interruption = threading.Event()
        self.meanwhile: Callable[[], None] | None = None
        """Called once, in the middle of the next step of one sequence."""

    def open(self, sequence: int, capacity: int) -> None:
        self.lengths[sequence] = 0

    def fork(self, source: int, sequence: int, length: int, capacity: int) -> None:
        self.lengths[sequence] = length

    def resize(self, sequence: int, capacity: int) -> None:
        """Room costs nothing here."""

    def free(self, sequence: int) -> None:
        del self.lengths[sequence]

    def truncate(self, sequence: int, length: int) -> None:
        self.lengths[sequence] = length

    def length(self, sequence: int) -> int:
        return self.lengths[sequence]

    def extend(self, sequence: int, hidden: Any) -> Any:
        if self.broken:
            raise ZeroDivisionError("a bug of ours")
        if self.meanwhile is not None:
            meanwhile, self.meanwhile = self.meanwhile, None
            meanwhile()
            if self.interruption.is_set():
                raise StepInterrupted("stopped")
        self.lengths[sequence] += len(hidden)
        return hidden

    def decode(self, sequences: Sequence[int], hidden: Any) -> Any:
        for sequence in sequences:
            self.lengths[sequence] += 1
        return hidden


class Stage:
    """Control and compute threads of one stage, driven by the test."""

    def __init__(self) -> None:
        self.model = FakeModel()
        self.data, self.listener = FakeListener(), FakeListener()
        self.compute = ComputeThread(ModelRunner(self.model, 64), self.data)  # type: ignore[arg-type]
        connector = SimpleNamespace(
            begin=lambda attempt: self.compute.inbox.put(NextStageLink(attempt)), close=lambda: None
        )
        self.control = ControlThread(self.listener, self.compute, connector, WELCOME, DRIVER.key)  # type: ignore[arg-type]

    def order(self, sender: Sender, *frames: bytes) -> list[Message]:
        """Everything that one control message brings about; what is answered to it."""
        self.listener.put(sender, frames)
        self.control.receive()
        self.work()
        answers = [message for route, message in self.listener.sent if route == sender.route]
        self.listener.sent.clear()
        return answers

    def order_meanwhile(self, message: Message) -> None:
        """Let the coordinator's control message come in the middle of the next step."""

        def come() -> None:
            self.listener.put(DRIVER, [encode(message)])
            self.control.receive()

        self.model.meanwhile = come

    def work(self) -> None:
        for command in self.compute.inbox.drain():
            if command is not None:
                self.compute.execute(command)
        for route, message in self.compute.outbox.drain():
            self.control.reply(route, message)

    def feed(self, frame: Forward | Batch, hidden: Any, sender: Sender = GUEST) -> None:
        """Let the compute thread handle a frame, which gets the next number of its link unless it has one."""
        self.put(frame, hidden, sender)
        self.compute.receive()

    def put(self, frame: Forward | Batch, hidden: Any, sender: Sender = GUEST) -> None:
        """Let a frame wait in the socket, with the number of the first that waits there unless it has one."""
        ring = self.compute._rings.by_epoch.get(frame.epoch)
        if ring is not None and not frame.serial:
            frame = frame._replace(serial=ring.arrivals.next_serial)
        tensor = np.asarray(hidden, np.float32).tobytes()
        frame = frame._replace(checksum=frame.checksum or zlib.crc32(tensor))
        self.data.put(sender, [encode(frame), tensor])

    def faults(self) -> list[Fault]:
        return [message for _, message in self.compute.outbox.drain() if isinstance(message, Fault)]

    def close(self) -> None:
        self.compute.close()
        self.compute.inbox.close()
        self.compute.outbox.close()
