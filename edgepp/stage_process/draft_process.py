"""Body of a child process that guesses tokens with a whole model, in place of a stage."""

from __future__ import annotations

import os
import time
from pathlib import Path

import zmq

from edgepp.stage_process.config import StageConfig
from edgepp.stage_process.draft_server import DraftServer, compute_in_background
from edgepp.stage_process.drafting import Drafting
from edgepp.stage_process.loading import load_layers, open_layers, options_of
from edgepp.stage_process.process_life import report_ready, watch_parent
from edgepp.stage_process.speed_probe import measure_speed
from edgepp.wire import codec
from edgepp.wire.address import Address
from edgepp.wire.messages import MAX_CONTROL_FRAME_BYTES
from edgepp.wire.messages.drafts import Drafter
from edgepp.wire.security import Gate
from edgepp.wire.transport import Listener


def serve_drafts(config: StageConfig) -> None:
    """Load the whole model with its ends, report ``ready``, and guess until standard input ends.

    Raises:
        EdgeppError: The model cannot be loaded, or the address is taken.
    """
    started_s = time.perf_counter()
    vocabulary = _vocabulary(Path(config.path))
    checkpoint = open_layers(config)
    model, chosen = load_layers(config, checkpoint)
    ends = chosen.load_embedding_and_head(checkpoint, options_of(config))
    prefill_us, decode_us = config.speed_us or measure_speed(model)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    gate = Gate(context)
    gate.admit(config.admit)
    listener = Listener(context, Address.parse(config.listen), MAX_CONTROL_FRAME_BYTES, config.keys)
    drafter = Drafter(
        config.node, os.getpid(), config.model, vocabulary, checkpoint.context, chosen.name, model.device, decode_us
    )
    server = DraftServer(listener, Drafting(model, ends, checkpoint.context), drafter, config.driver)
    watch_parent(config, server.inbox.put, gate)
    report_ready(
        started_s,
        address=str(listener.address),
        backend=chosen.name,
        device=model.device,
        dtype=codec.dtype_name(codec.DTYPES[model.dtype]),
        weight_bytes=checkpoint.layer_bytes(config.layers),
        prefill_us=prefill_us,
        decode_us=decode_us,
    )
    if config.background:
        compute_in_background()
    server.run()
    server.close()
    gate.close()
    context.term()


def _vocabulary(path: Path) -> str:
    """Digest of the model's tokens."""
    from edgepp.model.text.tokenizer import Tokenizer  # which a stage does not need

    tokenizer = Tokenizer.load(path)
    try:
        return tokenizer.vocabulary_digest()
    finally:
        tokenizer.close()
