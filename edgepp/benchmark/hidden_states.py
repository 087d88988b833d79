"""Hidden states on a link: cost of the codecs on this machine, and the choice of ``auto`` by the rate of the link."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from edgepp import backend
from edgepp.backend.device import release_thread
from edgepp.benchmark.prompts import words
from edgepp.benchmark.report import AutoChoice, CodecResult, Spread
from edgepp.errors import ModelError
from edgepp.layer_range import LayerRange
from edgepp.model.fetch import find_local
from edgepp.model.text.tokenizer import Tokenizer
from edgepp.model.weights.checkpoint import Checkpoint
from edgepp.node.memory import usable_memory
from edgepp.stage_process.compute_policy import ComputePolicy
from edgepp.wire import codec
from edgepp.wire.codec import Array
from edgepp.wire.codec_choice import CodecChoice
from edgepp.wire.field_types import Codec

ROWS = (1, 4, 16, 32, 64)
WIDTH = 8192
"""Hidden size of Llama 70B, as in the origin's table."""
DTYPE = "float16"
CODECS: tuple[Codec, ...] = ("none", "lz4", "zstd")
_WINDOW = 512  # tokens per sequence
_MAX_TOKENS = 8192  # computed; further rows repeat
_MEMORY_DIVISOR = 4
"""A model is loaded for its hidden states only if half of it takes at most 1 / this of the usable memory."""
_TRIALS = 3


def noise(dtype: str = DTYPE, rows: int = max(ROWS)) -> Array:
    """Normal noise (rows, WIDTH), as in the origin's measurement."""
    values = np.random.default_rng(0).standard_normal((rows, WIDTH), np.float32)
    return values.astype(codec.DTYPES[dtype])


def prose(tokens: int) -> str:
    """A text of about ``tokens`` tokens, or the whole text if that is shorter."""
    return " ".join(words()[:tokens])


def real(model: str, dtype: str = DTYPE, rows: int = max(ROWS), text: Callable[[int], str] = prose) -> Array:
    """Hidden states (rows, WIDTH) of a text after half of the model's layers, computed in this thread.

    A row is filled with the hidden states of consecutive tokens. ``text(n)`` returns a text of about n tokens; the rows
    of a shorter text repeat.

    Raises:
        ModelError: the model is not complete on this disk, is damaged, or half of it takes too much of the memory.
    """
    path = find_local(model)
    if path is None:
        raise ModelError(f"{model} is not complete on this disk", f"run `edgepp models pull {model}`")
    checkpoint = Checkpoint.open(path)
    if sum(place.nbytes for place in checkpoint.tensors.values()) / 2 > usable_memory() / _MEMORY_DIVISOR:
        raise ModelError(
            f"{model} is too large to load in addition to the running stages", "measure a smaller model, or free memory"
        )
    try:
        return _computed(path, checkpoint, rows, text).astype(codec.DTYPES[dtype])
    finally:
        release_thread()


def _computed(path: Path, checkpoint: Checkpoint, rows: int, text: Callable[[int], str]) -> Array:
    tokens_per_row = -(-WIDTH // checkpoint.hidden_size)
    needed = min(rows * tokens_per_row, _MAX_TOKENS)
    tokens = Tokenizer.load(path).encode(text(needed))[:needed]
    chosen = backend.choose("auto", checkpoint)
    options = ComputePolicy.shared().backend_options()
    ends = chosen.load_embedding_and_head(checkpoint, options)
    stage = chosen.load_stage(checkpoint, LayerRange(0, -(-checkpoint.num_layers // 2)), options)
    states = []
    window = min(_WINDOW, checkpoint.context)
    for start in range(0, len(tokens), window):
        part = tokens[start : start + window]
        stage.open(start, len(part))
        states.append(stage.extend(start, ends.embed(part)))
        stage.free(start)
    filled = np.concatenate(states).take(np.arange(rows * tokens_per_row), axis=0, mode="wrap")
    return np.ascontiguousarray(filled.reshape(rows, -1)[:, :WIDTH])


def measure_codecs(kind: str, states: Array, rounds: int) -> list[CodecResult]:
    """Measure every size and codec in turn, round after round, each after an unmeasured run of the same case."""
    cases = [(rows, name) for rows in ROWS for name in CODECS]
    taken_ms: dict[tuple[int, Codec], list[float]] = {case: [] for case in cases}
    sent: dict[tuple[int, Codec], int] = {}
    for _ in range(rounds):
        for rows, name in cases:
            _once(states[:rows], name)
            spent_ms, sent[rows, name] = _once(states[:rows], name)
            taken_ms[rows, name].append(spent_ms)
    dtype = str(codec.dtype_name(states.dtype))
    return [
        CodecResult(
            rows, WIDTH, dtype, kind, name, Spread.of(taken_ms[rows, name]), states[:rows].nbytes, sent[rows, name]
        )
        for rows, name in cases
    ]  # fmt: skip


def _once(states: Array, name: Codec) -> tuple[float, int]:
    """Milliseconds of encoding and decoding, and number of encoded bytes."""
    began_s = time.perf_counter()
    frames = codec.encode(states, name)
    codec.decode(frames, len(states), states.shape[1], codec.dtype_name(states.dtype), name)
    return (time.perf_counter() - began_s) * 1e3, sum(len(frame) for frame in frames)


def auto_choices(kind: str, states: Array, rates_mbit_per_s: Sequence[float]) -> list[AutoChoice]:
    """Choice of ``auto`` for every size on links of these rates: the most frequent of a few first trials."""
    found = []
    for mbit_per_s in rates_mbit_per_s:
        for rows in ROWS:
            trials = (CodecChoice("auto", mbit_per_s * 125e3).encode(states[:rows])[0] for _ in range(_TRIALS))
            found.append(AutoChoice(mbit_per_s, kind, rows, statistics.mode(trials)))
    return found
