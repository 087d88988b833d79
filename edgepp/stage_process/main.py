"""Entry point of a stage process: one layer range, one compute thread, one control thread.

The process reads its configuration from the first line of standard input, later lines admit keys, and the end of the
input ends the process: a stage process never outlives its node. It reports on standard output, one JSON object per
line. A stage knows nothing about requests, prompts or other nodes' names.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path

import psutil
import zmq

from edgepp import backend
from edgepp.backend.base import StageModel
from edgepp.error_boundary import explained
from edgepp.model.weights.checkpoint import Checkpoint
from edgepp.printable import PrintableFormatter
from edgepp.stage_process.compute_thread import Command, ComputeThread
from edgepp.stage_process.config import StageConfig
from edgepp.stage_process.control_thread import ControlThread
from edgepp.stage_process.model_runner import ModelRunner
from edgepp.stage_process.next_stage import NextStageConnector
from edgepp.stage_process.speed_probe import measure_speed, warm_up
from edgepp.wire import codec
from edgepp.wire.address import Address
from edgepp.wire.mailbox import Mailbox
from edgepp.wire.messages import MAX_CONTROL_FRAME_BYTES, max_data_frame_bytes
from edgepp.wire.messages.control import Welcome
from edgepp.wire.security import Gate, KeyPair
from edgepp.wire.transport import Listener

log = logging.getLogger("edgepp.stage")
_is_ready = threading.Event()
_MAX_QUEUED_ANSWERS = 128
"""Results and echoes queued for one slow peer; more than a ring has steps under way."""


def _report(event: str, **fields: object) -> None:
    sys.stdout.write(json.dumps({"event": event, **fields}) + "\n")
    sys.stdout.flush()


def _load(config: StageConfig) -> tuple[Checkpoint, StageModel, str]:
    checkpoint = Checkpoint.open(Path(config.path))
    checkpoint.require(config.layers)
    chosen = backend.choose(config.backend, checkpoint)
    options = config.policy.backend_options(exact=config.exact, kv_bits=config.kv_bits)
    model = chosen.load_stage(
        checkpoint, config.layers, options, lambda done, total: _report("progress", done=done, total=total)
    )
    return checkpoint, model, chosen.name


def _listen(
    context: zmq.Context[zmq.Socket[bytes]], listen: Address, hidden_size: int, keys: KeyPair | None
) -> tuple[Listener, Listener]:
    """Control and data sockets: on the given port and the next one, or for port 0 on any free ports."""
    control = Listener(context, listen, MAX_CONTROL_FRAME_BYTES, keys)
    data_port = listen.port + 1 if listen.port else 0
    data = Listener(
        context, Address(listen.host, data_port), max_data_frame_bytes(hidden_size), keys, _MAX_QUEUED_ANSWERS
    )
    return control, data


def serve(config: StageConfig) -> None:
    """Load the layers, report ``ready``, and run until standard input ends.

    Raises:
        EdgeppError: The layers cannot be loaded, or the address is taken.
    """
    started_s = time.perf_counter()
    checkpoint, model, name = _load(config)
    if config.speed_us is not None:
        warm_up(model)
    prefill_us, decode_us = config.speed_us or measure_speed(model)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    gate = Gate(context)
    gate.admit(config.admit)
    control, data = _listen(context, Address.parse(config.listen), model.hidden_size, config.keys)
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
        dtype=codec.dtype_name(codec.DTYPES[model.dtype]),
        exact=config.exact,
        chunk=model.chunk,
        weight_bytes=checkpoint.layer_bytes(config.layers),
        prefill_us=prefill_us,
        decode_us=decode_us,
        rewinds=model.rewinds,
    )
    runner = ModelRunner(model, checkpoint.context)
    del checkpoint  # which unmaps its files
    compute = ComputeThread(runner, data, awake=config.policy.awake)
    row_bytes = model.hidden_size * codec.DTYPES[model.dtype].itemsize
    frame_bytes = max_data_frame_bytes(model.hidden_size)
    connector = NextStageConnector(context, config.keys, row_bytes, frame_bytes, compute.inbox.put, compute.outbox)
    compute.bulk.connect = connector.begin_bulk
    control_thread = ControlThread(control, compute, connector, welcome, config.driver)
    control_thread.start()
    threading.Thread(target=_follow_parent, args=(compute.inbox, gate), name="lifeline", daemon=True).start()
    _report(
        "ready",
        address=str(control.address),
        seconds=round(time.perf_counter() - started_s, 3),
        resident_bytes=psutil.Process().memory_info().rss,
        **{key: value for key, value in welcome._asdict().items() if key not in ("node", "model")},
    )
    _is_ready.set()
    gc.collect()
    gc.freeze()  # loaded objects stay: exempt from collections between frames
    compute.run()
    control_thread.stop()
    compute.close()
    gate.close()
    context.term()


def _follow_parent(inbox: Mailbox[Command], gate: Gate) -> None:
    try:
        for line in sys.stdin:
            gate.admit(json.loads(line)["admit"])
    finally:
        inbox.put(None)
        time.sleep(2.0)
        os._exit(1)  # the compute thread has not ended in time


def main() -> None:
    """Entry point of ``python -m edgepp.stage_process.main``."""
    for number in (signal.SIGINT, signal.SIGHUP):  # both reach the whole process group; the parent decides
        signal.signal(number, signal.SIG_IGN)
    handler = logging.StreamHandler()
    handler.setFormatter(PrintableFormatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    line = sys.stdin.readline()
    if not line:
        return  # the parent has ended already
    try:
        serve(StageConfig.decode(line))
    except Exception as error:  # noqa: BLE001 - the boundary of the process
        known = explained(error)
        if _is_ready.is_set():  # the parent reads no more reports
            log.error("%s; %s", known, known.hint)
            sys.exit(1)
        try:
            _report("error", message=str(known), hint=known.hint)
        except BrokenPipeError:
            sys.stdout = None  # the parent has ended: an exit handler must not flush
        sys.exit(1)


if __name__ == "__main__":
    main()
