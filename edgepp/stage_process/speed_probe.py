"""Measured speed of a stage, or of a machine.

``measure_speed`` times loaded layers, which also warms the backend up. As a process of its own
(``python -m edgepp.stage_process.speed_probe``), the probe measures a machine before layers are placed there: it reads
a ``ProbeConfig`` from standard input, answers with one line of JSON, and ends when that input ends.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgepp import backend
from edgepp.backend.base import BackendOptions, StageModel
from edgepp.error_boundary import explained
from edgepp.layers import LayerRange
from edgepp.model.catalogue.cards import Shape, token_flops
from edgepp.model.weights.checkpoint import Checkpoint
from edgepp.wire.codec import DTYPES

_BUDGET_S = 1.0
_SEQUENCE = -1
_LAYER = Shape(
    layers=1, heads=32, kv_heads=8, head_size=64, hidden=2048, ffn=8192, vocabulary=320, tied=True, context=1024,
    bits=4, group_size=64,
)  # fmt: skip
"""Shape of one layer of Llama 3.2 1B, 34 MB."""
_COPIES = 4
"""Copies of the layer per step, so that processor caches cannot keep the weights from one step to the next."""


def measure_speed(*stages: StageModel) -> tuple[int, int]:
    """Microseconds (per token of a prefill chunk, per decode step), each at least 1. Takes at most about a second.

    Several stages are run one after the other and timed as one.
    """
    decode_s = min(_time_step(stages, 1) for _ in range(3))
    tokens = max(2, min(stages[0].chunk, int(_BUDGET_S / decode_s)))
    prefill_s = min(_time_step(stages, tokens) for _ in range(2)) / tokens
    return max(1, int(prefill_s * 1e6)), max(1, int(decode_s * 1e6))


def warm_up(stage: StageModel) -> None:
    """Run one decode step, which takes longer than later ones."""
    _time_step([stage], 1)


def _time_step(stages: Sequence[StageModel], tokens: int) -> float:
    hidden = np.full((tokens, stages[0].hidden_size), 0.1, DTYPES[stages[0].dtype])
    for stage in stages:
        stage.open(_SEQUENCE, tokens)
    try:
        started_s = time.perf_counter()
        for stage in stages:
            stage.extend(_SEQUENCE, hidden)
        return time.perf_counter() - started_s
    finally:
        for stage in stages:
            stage.free(_SEQUENCE)


@dataclass(frozen=True)
class ProbeConfig:
    """Configuration of a probe process."""

    folder: str
    """Empty folder for the random checkpoint; the parent removes the folder."""
    backend: str
    threads: int
    exact: bool


def probe(config: ProbeConfig) -> dict[str, Any]:
    """Load random layers as a stage does, and time them.

    Returns ``backend``, ``device``, ``stream_bytes_per_s`` (weights read by decode steps) and ``flops_per_s`` (of a
    prefill).

    Raises:
        EdgeppError: The backend is unknown or cannot load the layers.
    """
    from edgepp.model.random_checkpoint import (
        make_checkpoint,  # imports MLX, which the stages that import this module may not need
    )

    checkpoint = Checkpoint.open(make_checkpoint(Path(config.folder), _LAYER))
    chosen = backend.choose(config.backend, checkpoint)
    options = BackendOptions(threads=config.threads, exact=config.exact)
    stages = [chosen.load_stage(checkpoint, LayerRange(0, 1), options) for _ in range(_COPIES)]
    prefill_us, decode_us = measure_speed(*stages)
    return {
        "backend": chosen.name,
        "device": stages[0].device,
        "stream_bytes_per_s": _COPIES * _LAYER.layer_bytes() / (decode_us / 1e6),
        "flops_per_s": _COPIES * token_flops(_LAYER.layer_weights()) / (prefill_us / 1e6),
    }


def _end_with_parent(folder: str) -> None:
    sys.stdin.buffer.read()
    # The parent cannot remove the folder any more, and the main thread may be writing there: exec ends that thread.
    remove = "import shutil, sys; shutil.rmtree(sys.argv[1], ignore_errors=True); sys.exit(1)"
    os.execv(sys.executable, [sys.executable, "-I", "-c", remove, folder])  # noqa: S606 - the command is ours


def main() -> None:
    """Entry point of ``python -m edgepp.stage_process.speed_probe``."""
    for number in (signal.SIGINT, signal.SIGHUP):  # both reach the whole process group; the parent decides
        signal.signal(number, signal.SIG_IGN)
    line = sys.stdin.readline()
    if not line:
        return  # the parent has ended already
    config = ProbeConfig(**json.loads(line))
    threading.Thread(target=_end_with_parent, args=(config.folder,), name="lifeline", daemon=True).start()
    try:
        answer = probe(config)
    except Exception as error:  # noqa: BLE001 - the boundary of the process
        known = explained(error)
        answer = {"error": str(known), "hint": known.hint}
    with suppress(BrokenPipeError):  # the parent has ended
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    os._exit(0)  # at once: threads of a backend can crash while the interpreter shuts down


if __name__ == "__main__":
    main()
