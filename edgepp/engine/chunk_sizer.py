"""Chunked prefill: how many tokens of a prompt go in one step, by the measured times of steps. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

_STEP_S = 2.0
_STEPS_PER_CHUNK = 1.5
_MAX_PRESSURE = 3.0
_MIN_TOKENS = 4
_SMOOTHING = 0.2


class StageTraits(Protocol):
    """What the engine core reads of a stage."""

    @property
    def chunk(self) -> int:
        """Tokens of a chunk with which the stage is efficient."""

    @property
    def context(self) -> int:
        """Most positions of a sequence."""

    @property
    def prefill_s(self) -> float:
        """Seconds per token of a chunk."""

    @property
    def decode_s(self) -> float:
        """Seconds of a decode step."""

    @property
    def rewinds(self) -> bool:
        """Whether its sequences can go back to any position, and begin as copies of others."""


class ChunkSizer:
    """The lengths of prefill chunks."""

    def __init__(self, stages: Sequence[StageTraits]) -> None:
        slowest = max(stages, key=lambda stage: stage.decode_s)
        self._decode_s, self._token_s = slowest.decode_s, slowest.prefill_s
        self._weights_s = max(0.0, slowest.decode_s - slowest.prefill_s)
        """What a step takes before its first token: reading the weights."""
        efficient, token_s = min(stage.chunk for stage in stages), sum(stage.prefill_s for stage in stages)
        self._chunk = longest_chunk(efficient, len(stages), token_s)

    @property
    def chunk(self) -> int:
        """Tokens of a chunk while no request decodes."""
        return self._chunk

    def interleaved(self, pressure: float) -> int:
        """Tokens of a chunk that goes between decode steps: it takes a stage as long as ``_STEPS_PER_CHUNK`` of them.

        Where more prompts wait than requests decode (``pressure`` is their ratio), they wait longer in all than a
        stream does, so the chunk takes as much longer, up to ``_MAX_PRESSURE``.
        """
        steps = _STEPS_PER_CHUNK * min(max(1.0, pressure), _MAX_PRESSURE)
        spare_s = steps * self._decode_s - self._weights_s
        tokens = int(spare_s / self._token_s) if self._token_s else 0
        return min(self._chunk, max(_MIN_TOKENS, tokens))

    def decoded(self, compute_s: Sequence[float]) -> None:
        """Learn from a decode step, by what each stage took."""
        self._decode_s += _SMOOTHING * (max(compute_s) - self._decode_s)

    def prefilled(self, tokens: int, compute_s: Sequence[float]) -> None:
        """Learn from a chunk: the longer what stands before it, the longer it takes."""
        token_s = max(0.0, max(compute_s) - self._weights_s) / tokens
        self._token_s += _SMOOTHING * (token_s - self._token_s)


def longest_chunk(efficient: int, stages: int, token_s: float) -> int:
    """Tokens of a chunk while no request decodes; ``token_s`` are the seconds of each on all ``stages`` together.

    A pipeline waits for one chunk per stage to fill, so its chunks are half as long as is ``efficient``. None takes
    longer to go round than ``_STEP_S``, so that a wedged stage is told from a slow one in time.
    """
    wanted = efficient if stages == 1 else efficient // 2
    return max(1, min(wanted, int(_STEP_S / token_s) if token_s else wanted))
