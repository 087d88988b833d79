"""Chunked prefill: how many tokens of a prompt one step carries, from the measured times of steps. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

_STEP_S = 2.0
"""Seconds that a chunk may take on all stages together."""
_STEPS_PER_CHUNK = 1.5
"""How long a chunk between decode steps may take on one stage, in decode steps."""
_MAX_PRESSURE = 3.0
_MIN_TOKENS = 4
_SMOOTHING = 0.2


class StageTraits(Protocol):
    """Figures of a stage that the engine core needs. Implemented by ``StageInfo`` and by the simulator."""

    @property
    def chunk(self) -> int:
        """Tokens per chunk with which the stage is efficient."""

    @property
    def context(self) -> int:
        """Positions that one sequence may take at most."""

    @property
    def prefill_s(self) -> float:
        """Seconds of computing per token of a prefill chunk."""

    @property
    def decode_s(self) -> float:
        """Seconds of computing per decode step of one sequence."""

    @property
    def rewinds(self) -> bool:
        """Whether a sequence can go back to any position, and begin as a copy of another."""


class ChunkSizer:
    """Chooses the lengths of prefill chunks, and learns from the times of steps."""

    def __init__(self, stages: Sequence[StageTraits]) -> None:
        slowest = max(stages, key=lambda stage: stage.decode_s)
        self._decode_s, self._token_s = slowest.decode_s, slowest.prefill_s
        self._weights_s = max(0.0, slowest.decode_s - slowest.prefill_s)
        """Seconds of a step before its first token: reading the weights."""
        efficient, token_s = min(stage.chunk for stage in stages), sum(stage.prefill_s for stage in stages)
        self._chunk = longest_chunk(efficient, len(stages), token_s)

    @property
    def chunk(self) -> int:
        """Tokens of a chunk while no request decodes."""
        return self._chunk

    def interleaved(self, pressure: float) -> int:
        """Tokens of a chunk that goes between decode steps; a stage computes it in ``_STEPS_PER_CHUNK`` decode steps.

        ``pressure`` is the number of waiting prompts per decoding request. Above 1, prompts lose more time by waiting
        than decoding requests do, so the chunk may take ``pressure`` times as long, up to ``_MAX_PRESSURE``.
        """
        steps = _STEPS_PER_CHUNK * min(max(1.0, pressure), _MAX_PRESSURE)
        spare_s = steps * self._decode_s - self._weights_s
        tokens = int(spare_s / self._token_s) if self._token_s else 0
        return min(self._chunk, max(_MIN_TOKENS, tokens))

    def returned(self, positions: int, compute_s: Sequence[float], *, decodes: bool) -> None:
        """Learn from a step that took each stage its part of ``compute_s``: a chunk, or a step that ``decodes``."""
        if not decodes:
            self._prefilled(positions, compute_s)
        elif positions == 1:  # guesses make a step longer
            self._decoded(compute_s)

    def _decoded(self, compute_s: Sequence[float]) -> None:
        """Learn from a decode step that took each stage its part of ``compute_s``."""
        self._decode_s += _SMOOTHING * (max(compute_s) - self._decode_s)

    def _prefilled(self, tokens: int, compute_s: Sequence[float]) -> None:
        """Learn from a chunk of ``tokens``, whose time per token grows with the positions before it."""
        token_s = max(0.0, max(compute_s) - self._weights_s) / tokens
        self._token_s += _SMOOTHING * (token_s - self._token_s)


def longest_chunk(efficient: int, stages: int, token_s: float) -> int:
    """Tokens of a chunk while no request decodes; ``token_s`` is the seconds per token on all ``stages`` together.

    A pipeline of several stages waits for one chunk per stage until it is full, so its chunks have half of the
    ``efficient`` tokens. No chunk takes longer than ``_STEP_S``, which tells a wedged stage from a slow one in time.
    """
    wanted = efficient if stages == 1 else efficient // 2
    return max(1, min(wanted, int(_STEP_S / token_s) if token_s else wanted))
