"""Loading of the layers that a child process was configured for."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgepp import backend
from edgepp.backend.base import BackendOptions, StageModel
from edgepp.backend.loader import Backend, OutputHead
from edgepp.model.weights.checkpoint import Checkpoint
from edgepp.stage_process.config import StageConfig
from edgepp.stage_process.reports import report


def open_layers(config: StageConfig) -> Checkpoint:
    """The checkpoint, which has the layers.

    Raises:
        ModelError: the folder is no model, or lacks the layers.
    """
    checkpoint = Checkpoint.open(Path(config.path))
    checkpoint.require(config.layers)
    return checkpoint


def load_layers(config: StageConfig, checkpoint: Checkpoint) -> tuple[StageModel, Backend]:
    """The layers of this process, and their backend; the parent is told the progress.

    Raises:
        ModelError: the backend cannot load them.
    """
    chosen = backend.choose(config.backend, checkpoint)
    return chosen.load_stage(checkpoint, config.layers, options_of(config), report_progress), chosen


def load_head(chosen: Backend, config: StageConfig, checkpoint: Checkpoint) -> OutputHead:
    """The output head of a last stage of one process, after a first call, which takes longer than later ones.

    Raises:
        ModelError: the backend cannot load it.
    """
    head = chosen.load_head(checkpoint, options_of(config))
    head.logits(np.zeros((1, checkpoint.hidden_size), np.float32))
    return head


def report_progress(done: int, total: int) -> None:
    """Report to the parent that ``done`` of ``total`` bytes are loaded."""
    report("progress", done=done, total=total)


def options_of(config: StageConfig) -> BackendOptions:
    """Options of the backend that a stage configuration asks for."""
    return config.policy.backend_options(exact=config.exact, kv_bits=config.kv_bits)
