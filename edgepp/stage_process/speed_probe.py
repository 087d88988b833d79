"""Measured speed of a stage, or of a machine.

``measure_speed`` times loaded layers, which also warms the backend up. As a process of its own
(``python -m edgepp.stage_process.speed_probe``), the probe measures a machine before layers are placed there: it reads
a ``ProbeConfig`` from standard input, answers with one line of JSON, and ends when that input ends.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from edgepp import backend
from edgepp.backend.base import BackendOptions, StageModel
from edgepp.backend.device import has_gpu
from edgepp.child_process import read_configuration
from edgepp.error_boundary import explained
from edgepp.host_system.other_programs import OtherPrograms
from edgepp.layer_range import LayerRange
from edgepp.model.catalogue.cards import Shape, token_flops
from edgepp.model.tensor_shares import share_out
from edgepp.model.weights.checkpoint import Array, Checkpoint
from edgepp.model.weights.sharded_checkpoint import ShardedCheckpoint
from edgepp.wire.codec import DTYPES

_BUDGET_S = 1.0
_SEQUENCE = (1 << 62) - 1
"""Number that no sequence of a coordinator has."""
_LAYER = Shape(
    layers=1, heads=32, kv_heads=8, head_size=64, hidden=2048, ffn=8192, vocabulary=320, tied=True, context=1024,
    bits=4, group_size=64,
)  # fmt: skip
"""Shape of one layer of Llama 3.2 1B, 34 MB."""
_COPIES = 4
"""Copies of the layer per step, so that processor caches cannot keep the weights from one step to the next."""
_EQUAL = (1, 1)
"""Weights of two ranks that share the layer."""
_GPU_LAYERS = 16
"""Layers per step of a GPU, which take it about as long as the host needs to begin a step."""
_SPARE_CORES = 0.25
"""Cores that other programs may use beyond those that are free before a measurement counts as contended."""


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


def _time_step(stages: Sequence[StageModel], tokens: int, clock: Callable[[], float] = time.perf_counter) -> float:
    hidden = np.full((tokens, stages[0].hidden_size), 0.1, DTYPES[stages[0].dtype])
    for stage in stages:
        stage.open(_SEQUENCE, tokens)
    try:
        started_s = clock()
        for stage in stages:
            stage.extend(_SEQUENCE, hidden)
        return clock() - started_s
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

    Returns ``backend``, ``device``, ``stream_bytes_per_s`` (weights read by decode steps), ``flops_per_s`` (of a
    prefill), ``half_s``: the seconds that half of a layer takes a rank beyond its part of the whole layer's time, and
    ``contended``: other programs used cores that the threads of the probe needed.

    Raises:
        EdgeppError: The backend is unknown or cannot load the layers.
    """
    from edgepp.model.random_checkpoint import (
        make_checkpoint,  # imports MLX, which the stages that import this module may not need
    )

    layers, copies = (_GPU_LAYERS, 1) if has_gpu() and config.backend != "onnx" else (1, _COPIES)
    checkpoint = Checkpoint.open(make_checkpoint(Path(config.folder), replace(_LAYER, layers=layers)))
    chosen = backend.choose(config.backend, checkpoint)
    options = BackendOptions(threads=config.threads, exact=config.exact)
    part = LayerRange(0, layers)
    stages = [chosen.load_stage(checkpoint, part, options) for _ in range(copies)]
    device = stages[0].device
    others = OtherPrograms()
    prefill_us, decode_us = measure_speed(*stages)
    contended = config.threads + others.cores() > (psutil.cpu_count() or 1) + _SPARE_CORES
    # A small difference of two times: other programs must not count, where one thread does all the work.
    clock = time.process_time if device == "cpu" and config.threads == 1 else time.perf_counter
    whole_s = min(_time_step(stages, 1, clock) for _ in range(3))
    del stages
    share, _ = share_out(checkpoint.settings, _EQUAL)
    rank = ShardedCheckpoint.of(checkpoint, share)
    ranks = [chosen.load_rank(rank, part, options, _double) for _ in range(copies)]
    rank_s = min(_time_step(ranks, 1, clock) for _ in range(4))  # the first one is slow
    return {
        "backend": chosen.name,
        "device": device,
        "stream_bytes_per_s": layers * copies * _LAYER.layer_bytes() / (decode_us / 1e6),
        "flops_per_s": layers * copies * token_flops(_LAYER.layer_weights()) / (prefill_us / 1e6),
        "half_s": min(max(0.0, rank_s - whole_s / len(_EQUAL)), whole_s) / (2 * layers * copies),
        "contended": contended,
    }


def _double(partial: Array, total: Array, /) -> None:
    """The sum over two ranks that compute the same; stands for a reduction without its cost."""
    np.add(partial, partial, out=total)


def _end_with_parent(folder: str) -> None:
    sys.stdin.buffer.read()
    # The parent cannot remove the folder any more, and the main thread may be writing there: exec ends that thread.
    remove = "import shutil, sys; shutil.rmtree(sys.argv[1], ignore_errors=True); sys.exit(1)"
    os.execv(sys.executable, [sys.executable, "-I", "-c", remove, folder])  # noqa: S606 - the command is ours


def main() -> None:
    """Entry point of ``python -m edgepp.stage_process.speed_probe``."""
    if not (line := read_configuration()):
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
