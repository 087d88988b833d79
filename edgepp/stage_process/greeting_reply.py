"""Facts about a stage in the answer to a greeting."""

from __future__ import annotations

import os

from edgepp.backend.base import StageModel
from edgepp.model.weights.checkpoint import Checkpoint
from edgepp.model.weights.weight_digests import weight_digests
from edgepp.printable import one_line
from edgepp.stage_process.config import StageConfig
from edgepp.wire import codec
from edgepp.wire.field_types import MAX_TOKENS
from edgepp.wire.messages.control import Welcome

MAX_FOLDER = 256
"""Characters of the folder's path that are told."""


def welcome_of(config: StageConfig, checkpoint: Checkpoint, model: StageModel, name: str) -> Welcome:
    """The stage's answer to a greeting, without its port and its speed."""
    return Welcome(
        node=config.node,
        pid=os.getpid(),
        data_port=1,
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
        chunk=min(model.chunk, MAX_TOKENS),  # as a frame carries no more
        weight_bytes=checkpoint.layer_bytes(config.layers),
        prefill_us=0,
        decode_us=0,
        rewinds=model.rewinds,
        folder=one_line(config.path, MAX_FOLDER),
        weights=weight_digests(checkpoint),
        has_head=config.head,
    )
