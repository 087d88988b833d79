"""Real stages in threads of the test: real layers, real sockets, and a bare coordinator that orders them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import zmq

from edgepp.backend.base import BackendOptions, StageModel
from edgepp.layer_range import LayerRange
from edgepp.model.weights.checkpoint import Array, Checkpoint
from edgepp.stage_process.compute_thread import ComputeThread
from edgepp.stage_process.control_thread import ControlThread
from edgepp.stage_process.model_runner import ModelRunner
from edgepp.stage_process.next_stage import NextStageConnector
from edgepp.wire import codec
from edgepp.wire.address import Address
from edgepp.wire.message_codec import decode, encode
from edgepp.wire.messages import MAX_CONTROL_FRAME_BYTES, Message, max_data_frame_bytes
from edgepp.wire.messages.control import Attach, Attached, Ping, Pong
from edgepp.wire.messages.data import Batch, Forward, Hidden, KvPiece
from edgepp.wire.messages.recovery import Expect, Held, Push, Rebuilt
from edgepp.wire.transport import Link, Listener
from tests.live_ranks import stage_model
from tests.stages import WELCOME
from tests.waiting import PATIENCE_S

HERE = Address("127.0.0.1", 0)
CAPACITY = 256


class LiveStage(threading.Thread):
    """One stage of ``checkpoint``, of one process or of several ranks; its compute thread is this thread."""

    def __init__(
        self, checkpoint: Checkpoint, layers: LayerRange, options: BackendOptions, ranks: tuple[int, ...] = (1,)
    ) -> None:
        super().__init__(name="stage")
        self.layers, self._ranks = layers, ranks
        self._checkpoint, self._options = checkpoint, options
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        width = checkpoint.hidden_size
        self.control = Listener(self._context, HERE, MAX_CONTROL_FRAME_BYTES)
        self.data = Listener(self._context, HERE, max_data_frame_bytes(width))
        self.compute: Any = None
        self._ready = threading.Event()
        self.start()

    def run(self) -> None:
        with stage_model(self._checkpoint, self.layers, "onnx", self._options, self._ranks) as model:
            self._run(model)

    def _run(self, model: StageModel) -> None:
        checkpoint = self._checkpoint
        compute = self.compute = ComputeThread(ModelRunner(model, checkpoint.context), self.data)
        width = checkpoint.hidden_size
        connector = NextStageConnector(
            self._context, None, width * 4, max_data_frame_bytes(width), compute.inbox.put, compute.outbox
        )
        compute.bulk.connect = connector.begin_bulk
        control = ControlThread(self.control, compute, connector, WELCOME)
        control.start()
        self._ready.set()
        compute.run()
        control.stop()
        compute.close()
        compute.inbox.close()
        compute.outbox.close()
        self._context.term()

    def ready(self) -> None:
        assert self._ready.wait(PATIENCE_S)

    def stop(self) -> None:
        if self.is_alive():
            self.compute.inbox.put(None)
            self.join()


class Driver:
    """A coordinator of one ring at a time, which sends what the test says and keeps what comes back."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._width = checkpoint.hidden_size
        self._controls: dict[LiveStage, Link] = {}
        self._links: list[Link] = []
        self.heard: list[Message] = []
        self.epoch = 0
        self._serial = 0
        self.stages: list[LiveStage] = []

    def attach(self, *stages: LiveStage, inherits: int = 0, **changes: dict[str, Any]) -> list[Held]:
        """Join ``stages`` to a new epoch; ``changes`` of the ``Attach`` of stage i by the name ``stage{i}``."""
        self.epoch, self._serial, self.stages = self.epoch + 1, 0, list(stages)
        for link in self._links:
            link.close()
        route = f"c{self.epoch}".encode()
        last = self._link(stages[-1].data.address, route)
        first = self._link(stages[0].data.address) if len(stages) > 1 else last
        self._links = [last, first] if first is not last else [last]
        for link in self._links:  # the route must exist before the last stage answers on it
            assert link.send([encode(KvPiece(0, 0, "copy", 0, 1, 0, 1, "", 0))], PATIENCE_S)
        held: list[Held] = []
        for index in reversed(range(len(stages))):
            following = str(stages[index + 1].data.address) if index + 1 < len(stages) else ""
            message = Attach(self.epoch, index, following, "", route.hex(), "none", 0, inherits=inherits)
            self.tell(stages[index], message._replace(**changes.get(f"stage{index}", {})))
            answer = self.hear(stages[index])
            while isinstance(answer, Held):
                held.append(answer)
                answer = self.hear(stages[index])
            assert isinstance(answer, Attached), answer
        return held

    def tell(self, stage: LiveStage, message: Message) -> None:
        if stage not in self._controls:
            self._controls[stage] = Link(self._context, stage.control.address, MAX_CONTROL_FRAME_BYTES)
        assert self._controls[stage].send([encode(message)], PATIENCE_S)

    def hear(self, stage: LiveStage) -> Message:
        """The next message of the stage's control socket."""
        frames = self._controls[stage].receive(PATIENCE_S)
        assert frames is not None
        return decode(frames[0])

    def send(self, sequence: int, position: int, hidden: Array, **changes: Any) -> None:
        header = Forward(
            self.epoch, sequence, self._serial, position, CAPACITY, 0, len(hidden), len(hidden), hidden.shape[1],
            "float32", "none", (), len(self.stages) - 1, self._serial,
        )  # fmt: skip
        self._send(header._replace(**changes), hidden)

    def send_batch(self, steps: Sequence[tuple[int, int]], hidden: Array) -> None:
        sequences, positions = zip(*steps, strict=True)
        header = Batch(
            self.epoch, self._serial, sequences, positions, hidden.shape[1], "float32", "none", (), self._serial
        )
        self._send(header, hidden)

    def result(self) -> Array:
        """The next hidden states of the last stage."""
        frames = self._links[0].receive(PATIENCE_S)
        assert frames is not None, "nothing came back"
        message = decode(frames[0])
        assert isinstance(message, Hidden | Batch)
        return np.array(codec.decode(frames[1:], message.rows, message.width, message.dtype, message.codec))

    def step(self, sequence: int, position: int, hidden: Array, **changes: Any) -> Array:
        self.send(sequence, position, hidden, **changes)
        return self.result()

    def rebuilt(self, stage: LiveStage, length: int, sequence: int = 1) -> None:
        """Wait until the stage has told that it holds ``length`` positions of ``sequence``."""
        while (message := self.hear(stage)) != Rebuilt(self.epoch, sequence, length):
            assert isinstance(message, Rebuilt), message

    def state(self, stage: LiveStage) -> Pong:
        self.tell(stage, Ping(self.epoch))
        answer = self.hear(stage)
        assert isinstance(answer, Pong), answer
        return answer

    def restore(self, source: LiveStage, target: LiveStage, length: int, what: Any = "kv", **changes: Any) -> None:
        """Have ``source`` send sequence 1 of the present epoch to ``target``, which lacks and expects it."""
        self.tell(target, Expect(self.epoch, 1, CAPACITY, length, ""))
        self.state(target)
        self.push(source, target, length, what, **changes)

    def push(self, source: LiveStage, target: LiveStage, length: int, what: Any = "kv", **changes: Any) -> None:
        """Have ``source`` send sequence 1 of the present epoch to ``target``, whatever ``target`` expects."""
        layers, address = target.layers, str(target.data.address)
        push = Push(self.epoch, 1, what, layers.start, layers.stop, 0, length, address, "", self.epoch)
        self.tell(source, push._replace(**changes))

    def close(self) -> None:
        for link in (*self._links, *self._controls.values()):
            link.close()
        self._context.term()

    def _send(self, header: Forward | Batch, hidden: Array) -> None:
        self._serial += 1
        tensor = np.ascontiguousarray(hidden).tobytes()
        header = header._replace(checksum=codec.checksum([tensor]))
        assert self._links[-1].send([encode(header), tensor], PATIENCE_S)

    def _link(self, address: Address, route: bytes | None = None) -> Link:
        return Link(self._context, address, max_data_frame_bytes(self._width), route)


@contextmanager
def live_stages(
    path: Path, ranks: Sequence[tuple[int, ...]] = ((1,),)
) -> Iterator[tuple[Callable[..., LiveStage], Driver]]:
    """A function that starts a stage of layers ``[start, stop)``, and their coordinator.

    Each stage has the weights of ``ranks`` whose turn it is.
    """
    checkpoint = Checkpoint.open(path)
    driver = Driver(checkpoint)
    started: list[LiveStage] = []

    def start(first: int, stop: int, kv_bits: int | None = None) -> LiveStage:
        options, weights = BackendOptions(exact=True, kv_bits=kv_bits), ranks[len(started) % len(ranks)]
        stage = LiveStage(checkpoint, LayerRange(first, stop), options, weights)
        started.append(stage)
        stage.ready()
        return stage

    try:
        yield start, driver
    finally:
        for stage in started:
            stage.stop()
        driver.close()
