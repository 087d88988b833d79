"""The times of an answer, and what it reused. Pure data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

RecoveryKind: TypeAlias = Literal["prefill", "log", "copies", "transfer"]
"""How lost keys and values were rebuilt: from tokens, from logged hidden states, from copies, or moved from stages."""


@dataclass(frozen=True)
class Recovery:
    """A loss of stages that an answer survived."""

    how: RecoveryKind
    pause_s: float
    """Seconds from the loss to the next token."""
    prefilled: int = 0
    """Positions that all stages computed again: ``how`` brought the others back."""


@dataclass(frozen=True)
class Regained:
    """Outcome for the keys and values of one request when another ring took over."""

    how: RecoveryKind
    prefilled: int
    """``Recovery.prefilled``."""


@dataclass
class StageTimes:
    """One stage's part of an answer's time, in seconds."""

    prefill_s: float = 0.0
    decode_s: float = 0.0
    wire_s: float = 0.0


@dataclass
class Timing:
    """An answer's times on the coordinator's clock, in seconds; the rates are defined in bench/METHODOLOGY.md."""

    submitted_s: float
    first_token_s: float = 0.0
    last_token_s: float = 0.0
    tokens: int = 0
    reused: int = 0
    """Tokens of the prompt that the stages still held from an earlier request."""
    guessed: int = 0
    """Tokens that were guessed before they were sampled."""
    right: int = 0
    """Guessed tokens that were right."""
    queued_s: float = 0.0
    """Seconds of waiting for a pipeline, and of encoding the prompt, which ``submitted_s`` precedes."""
    stages: list[StageTimes] = field(default_factory=list)
    """One per stage of the pipeline that gave the last token."""
    recoveries: list[Recovery] = field(default_factory=list)

    def token(self, now_s: float) -> None:
        """Note that a token was sampled."""
        if not self.tokens:
            self.first_token_s = now_s
        self.last_token_s = now_s
        self.tokens += 1

    @property
    def ttft_s(self) -> float:
        """Seconds from the submission to the first token."""
        return self.first_token_s - self.submitted_s if self.tokens else 0.0

    @property
    def decode_tokens_per_s(self) -> float:
        """Tokens per second without the first token: (N - 1) / (last - first)."""
        span = self.last_token_s - self.first_token_s
        return (self.tokens - 1) / span if self.tokens > 1 and span > 0 else 0.0

    @property
    def e2e_tokens_per_s(self) -> float:
        """Tokens per second from the submission on: N / (last - submitted)."""
        span = self.last_token_s - self.submitted_s
        return self.tokens / span if self.tokens and span > 0 else 0.0


@dataclass
class Reuse:
    """Number of prompt tokens that needed no computing."""

    asked: int = 0
    """Tokens of all prompts."""
    reused: int = 0
    """Tokens of prompts that the stages held from earlier requests."""
