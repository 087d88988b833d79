"""What can be asked, and what an answer is: the same for a pipeline of this process and for a cluster."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from edgepp.engine.live import FinishReason
from edgepp.engine.request import GenerateOptions, Timing
from edgepp.engine.ring import StageInfo
from edgepp.engine.sampling import Sampled
from edgepp.errors import EdgeppError


class Asked(Protocol):
    """An answer as it comes: iterate over it once for its text, then the rest is known."""

    token_ids: list[int]
    finish_reason: FinishReason | None
    prompt_tokens: int
    timing: Timing
    stages: tuple[StageInfo, ...]
    sampled: list[Sampled]

    def __iter__(self) -> Iterator[str]:
        """Pieces of text."""

    def cancel(self) -> None:
        """Stop it."""


class Model(Protocol):
    """What answers: a pipeline of this process, or a cluster."""

    @property
    def model(self) -> str:
        """Its name."""

    @property
    def stages(self) -> tuple[StageInfo, ...]:
        """What runs where."""

    @property
    def lost(self) -> EdgeppError | None:
        """Why it answers no more."""

    def ask(self, prompt: str | Sequence[Mapping[str, str]], options: GenerateOptions) -> Asked:
        """Answer a raw text or a conversation."""

    def close(self) -> None:
        """Release it."""
