"""A stage process: one layer range, one compute thread, one control thread.

The compute thread owns the model and the data socket, so that a frame is run by the thread that receives it. The
control thread answers while the compute thread computes; the two talk through mailboxes. The process reads its
configuration from the first line of standard input and ends when that input ends, so it never outlives its parent; it
reports on standard output, one JSON object a line. A stage knows nothing about requests, prompts or other nodes' names.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import zmq

from edgepp import backend
from edgepp.backend.base import BackendOptions, StageModel
from edgepp.errors import EdgeppError, RemoteProtocolError, StageFault
from edgepp.layers import LayerRange
from edgepp.model.checkpoint import Array, Checkpoint
from edgepp.node.probe import measure_speed
from edgepp.node.worker import Worker, answer_to
from edgepp.wire import codec
from edgepp.wire.messages import (
    MAX_TOKENS,
    Attach,
    Attached,
    Codec,
    Detach,
    Echo,
    Fault,
    Forward,
    Free,
    Hello,
    Message,
    Ping,
    Pong,
    Refused,
    Welcome,
    decode,
    encode,
)
from edgepp.wire.transport import Address, Link, Listener, Mailbox, Poller, measure_echo

log = logging.getLogger("edgepp.stage")

SILENCE_S = 10.0
"""A coordinator that says nothing for so long is gone; its sequences are freed."""
_ECHO_WAIT_S = 3.0
_SEND_WAIT_S = 1.0
_CONTROL_BYTES = 1 << 16

Command = tuple[bytes, Attach | Detach | Free] | None
"""What the control thread hands over, with the route of whoever asked; None means stop."""
Reply = tuple[bytes, Message]


@dataclass(frozen=True)
class StageConfig:
    """What a stage process is told at its start."""

    path: str
    model: str
    node: str
    start: int
    stop: int
    listen: str
    backend: str = "auto"
    threads: int = 1
    exact: bool = False
    spin: bool = False

    @property
    def layers(self) -> LayerRange:
        """The range to run."""
        return LayerRange(self.start, self.stop)


@dataclass
class Ring:
    """One coordinator's pipeline, as a stage of it sees it."""

    stage: int
    control: bytes
    next: Link | None
    route: bytes
    codec: Codec


class Status:
    """What the control thread may read while the compute thread works."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self.busy_since: float | None = None

    def pong(self, epoch: int, *, known: bool) -> Pong:
        """The present state as a ``Pong``."""
        since = self.busy_since
        busy_us = 0 if since is None else max(1, int((time.perf_counter() - since) * 1e6))
        worker = self._worker
        return Pong(
            epoch,
            known,
            busy_us,
            worker.counters.frames,
            worker.counters.dropped,
            worker.sequences,
            worker.model.kv_bytes,
        )

    def drop(self, reason: object) -> None:
        """Count a dropped frame; log the 1st, 10th, 100th … so that a flood cannot fill a disk."""
        count = self._worker.counters.dropped = self._worker.counters.dropped + 1
        if str(count).strip("0") == "1":
            log.warning("dropped frame %d: %s", count, reason)


class Compute:
    """The compute thread: takes frames off the data socket, runs them, sends them on."""

    def __init__(self, worker: Worker, data: Listener, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self.worker = worker
        self.data = data
        self.context = context
        self.inbox: Mailbox[Command] = Mailbox()
        self.outbox: Mailbox[Reply] = Mailbox()
        self.status = Status(worker)
        self._rings: dict[int, Ring] = {}

    def run(self) -> None:
        """Serve until told to stop."""
        poller = Poller[Command](self.inbox, self.data)
        while True:
            for reader in poller.wait(60.0):
                if reader is self.data:
                    self._receive()
                else:
                    for command in self.inbox.drain():
                        if command is None:
                            return
                        self._obey(*command)

    def close(self) -> None:
        """Release sockets and caches."""
        for epoch in list(self._rings):
            self._detach(epoch)
        self.data.close()

    def _obey(self, route: bytes, message: Attach | Detach | Free) -> None:
        match message:
            case Attach():
                self.outbox.put((route, self._attach(route, message)))
            case Free():
                self.worker.free(message.epoch, message.sequence)
            case Detach():
                self._detach(message.epoch)

    def _attach(self, route: bytes, message: Attach) -> Attached | Refused:
        self._detach(message.epoch)
        link, echo_s = None, 0.0
        if message.next_address:
            try:
                link = Link(self.context, Address.parse(message.next_address), _CONTROL_BYTES)
            except EdgeppError as error:
                return Refused(str(error))
            measured = measure_echo(link, self._hidden_bytes(1), _ECHO_WAIT_S)
            if measured is None:
                link.close()
                return Refused(f"it cannot reach the next stage at {message.next_address}")
            echo_s = measured
        self._rings[message.epoch] = Ring(message.stage, route, link, bytes.fromhex(message.route), message.codec)
        return Attached(message.epoch, int(echo_s * 1e6))

    def _hidden_bytes(self, tokens: int) -> int:
        return tokens * self.worker.model.hidden_size * codec.DTYPES[self.worker.model.dtype].itemsize

    def _detach(self, epoch: int) -> None:
        ring = self._rings.pop(epoch, None)
        if ring is not None and ring.next is not None:
            ring.next.close()
        self.worker.forget(epoch)

    def _receive(self) -> None:
        try:
            received = self.data.receive()
            if received is None:
                return
            route, (header, *tensor) = received
            message = decode(header)
            if isinstance(message, Forward):
                self._forward(message, tensor)
            elif isinstance(message, Echo) and not message.reply:
                self.data.send(route, [encode(replace(message, reply=True)), *tensor])
            else:
                raise RemoteProtocolError(f"a {type(message).__name__} message on a data socket")
        except RemoteProtocolError as error:
            self.status.drop(error)

    def _forward(self, frame: Forward, tensor: list[memoryview]) -> None:
        ring = self._rings.get(frame.epoch)
        if ring is None:
            raise RemoteProtocolError(f"a frame of the unknown epoch {frame.epoch}")
        if frame.width != self.worker.model.hidden_size or not frame.rows or frame.want > frame.rows:
            raise RemoteProtocolError(f"a frame of shape ({frame.rows}, {frame.width}) of which {frame.want} wanted")
        hidden = codec.decode(tensor, frame.rows, frame.width, frame.dtype, frame.codec)
        self.status.busy_since = time.perf_counter()
        try:
            result = self.worker.forward(frame, hidden)
            if result is not None:
                self._send(ring, *result)
        except StageFault as error:
            self._fault(ring, frame, str(error))
        except Exception as error:  # the stage loop is a boundary: the node lives on, the request ends
            log.exception("step failed")
            self._fault(ring, frame, f"{type(error).__name__}: {error}")
        finally:
            self.status.busy_since = None

    def _send(self, ring: Ring, frame: Forward, hidden: Array) -> None:
        header: Message = replace(frame, codec=ring.codec)
        if ring.next is None:
            header, hidden = answer_to(replace(frame, codec=ring.codec), hidden)
        parts = [encode(header), *codec.encode(hidden, ring.codec)]
        if ring.next is None:
            if not self.data.send(ring.route, parts):
                self.status.drop("the coordinator is gone")
        elif not ring.next.send(parts, _SEND_WAIT_S):
            raise StageFault(f"it cannot send to the next stage at {ring.next.address}")

    def _fault(self, ring: Ring, frame: Forward, reason: str) -> None:
        self.worker.free(frame.epoch, frame.sequence)
        self.outbox.put((ring.control, Fault(frame.epoch, frame.sequence, ring.stage, reason[:500])))


class Control(threading.Thread):
    """The control thread: answers at once, whatever the compute thread does."""

    def __init__(self, listener: Listener, compute: Compute, welcome: Welcome) -> None:
        super().__init__(name="control", daemon=True)
        self._listener = listener
        self._compute = compute
        self._welcome = welcome
        self._heard: dict[int, float] = {}
        self._stopping = threading.Event()

    def stop(self) -> None:
        """End the thread and close its socket."""
        self._stopping.set()
        self.join()
        self._listener.close()

    def run(self) -> None:
        """Serve until stopped."""
        poller = Poller[Reply](self._listener, self._compute.outbox)
        while not self._stopping.is_set():
            for reader in poller.wait(0.2):
                if reader is self._listener:
                    self._receive()
                else:
                    for route, message in self._compute.outbox.drain():
                        self._listener.send(route, [encode(message)])
            self._forget_the_silent()

    def _receive(self) -> None:
        try:
            received = self._listener.receive()
            if received is None:
                return
            route, frames = received
        except RemoteProtocolError as error:
            self._compute.status.drop(error)
            return
        try:
            if len(frames) != 1:
                raise RemoteProtocolError("a control message with a tensor")
            self._answer(route, decode(frames[0]))
        except RemoteProtocolError as error:
            self._compute.status.drop(error)
            self._listener.send(route, [encode(Refused(str(error)[:500]))])

    def _answer(self, route: bytes, message: Message) -> None:
        match message:
            case Hello():
                self._listener.send(route, [encode(self._welcome)])
            case Ping():
                known = message.epoch in self._heard
                if known:
                    self._heard[message.epoch] = time.monotonic()
                self._listener.send(route, [encode(self._compute.status.pong(message.epoch, known=known))])
            case Attach():
                self._heard[message.epoch] = time.monotonic()
                self._compute.inbox.put((route, message))
            case Detach():
                self._heard.pop(message.epoch, None)
                self._compute.inbox.put((route, message))
            case Free():
                self._compute.inbox.put((route, message))
            case _:
                raise RemoteProtocolError(f"a {type(message).__name__} message on a control socket")

    def _forget_the_silent(self) -> None:
        limit = time.monotonic() - SILENCE_S
        for epoch in [epoch for epoch, heard in self._heard.items() if heard < limit]:
            log.warning("the coordinator of epoch %d went silent; its sequences are freed", epoch)
            del self._heard[epoch]
            self._compute.inbox.put((b"", Detach(epoch)))


def _report(event: str, **fields: Any) -> None:
    sys.stdout.write(json.dumps({"event": event, **fields}) + "\n")
    sys.stdout.flush()


def _load(config: StageConfig) -> tuple[Checkpoint, StageModel, str]:
    checkpoint = Checkpoint.open(Path(config.path))
    checkpoint.require(config.layers)
    chosen = backend.choose(config.backend, checkpoint)
    options = BackendOptions(threads=config.threads, exact=config.exact, spin=config.spin)
    model = chosen.load_stage(
        checkpoint, config.layers, options, lambda done, total: _report("progress", done=done, total=total)
    )
    return checkpoint, model, chosen.name


def _listen(context: zmq.Context[zmq.Socket[bytes]], listen: Address, hidden_size: int) -> tuple[Listener, Listener]:
    """Control on the port that was asked for, data on the next; both free ones for port 0."""
    control = Listener(context, listen, _CONTROL_BYTES)
    data_port = listen.port + 1 if listen.port else 0
    data = Listener(context, Address(listen.host, data_port), MAX_TOKENS * hidden_size * 4)
    return control, data


def serve(config: StageConfig) -> None:
    """Load the range, announce it, serve until standard input ends.

    Raises:
        EdgeppError: the model does not load, or the address is taken.
    """
    began = time.perf_counter()
    checkpoint, model, name = _load(config)
    prefill_us, decode_us = measure_speed(model)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    control, data = _listen(context, Address.parse(config.listen), model.hidden_size)
    welcome = Welcome(
        node=config.node,
        pid=os.getpid(),
        data_port=data.address.port,
        model=config.model,
        fingerprint=checkpoint.fingerprint,
        commit=checkpoint.commit,
        start=config.start,
        stop=config.stop,
        num_layers=checkpoint.num_layers,
        hidden_size=model.hidden_size,
        context=checkpoint.context,
        backend=name,
        device=model.device,
        dtype=codec.checked_dtype(model.dtype),
        exact=config.exact,
        chunk=model.chunk,
        weight_bytes=checkpoint.layer_bytes(config.layers),
        prefill_us=prefill_us,
        decode_us=decode_us,
    )
    compute = Compute(Worker(model), data, context)
    answering = Control(control, compute, welcome)
    answering.start()
    threading.Thread(target=_end_with_parent, args=(compute.inbox,), name="lifeline", daemon=True).start()
    _report(
        "ready",
        address=str(control.address),
        seconds=round(time.perf_counter() - began, 3),
        resident_bytes=psutil.Process().memory_info().rss,
        **{key: value for key, value in asdict(welcome).items() if key not in ("node", "model")},
    )
    compute.run()
    answering.stop()
    compute.close()
    context.term()


def _end_with_parent(inbox: Mailbox[Command]) -> None:
    sys.stdin.buffer.read()
    inbox.put(None)
    time.sleep(2.0)
    os._exit(1)  # the compute thread is wedged


def main() -> None:
    """Entry point of ``python -m edgepp.node.stage``."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides what it means
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    try:
        serve(StageConfig(**json.loads(sys.stdin.readline())))
    except EdgeppError as error:
        _report("error", message=str(error), hint=error.hint)
        sys.exit(1)


if __name__ == "__main__":
    main()
