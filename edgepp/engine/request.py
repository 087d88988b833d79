"""What is asked of the engine and what it measures. Pure data."""

from __future__ import annotations

from dataclasses import dataclass, field

from edgepp.errors import UsageError


@dataclass(frozen=True)
class SamplingOptions:
    """How a token is chosen from logits; the defaults are greedy. Filters act in the order of the fields."""

    temperature: float = 0.0
    repetition_penalty: float = 1.0
    top_p: float = 1.0
    min_p: float = 0.0
    top_k: int = 0
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, low, high in (
            ("temperature", 0.0, 100.0),
            ("repetition_penalty", 0.01, 100.0),
            ("top_p", 0.0, 1.0),
            ("min_p", 0.0, 1.0),
            ("top_k", 0, 1 << 31),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise UsageError(f"{name} must lie between {low} and {high}, not {value}")


@dataclass(frozen=True)
class GenerateOptions:
    """When an answer ends, and how its tokens are chosen."""

    max_tokens: int = 512
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    sampling: SamplingOptions = field(default_factory=SamplingOptions)

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise UsageError(f"an answer needs at least 1 token, not {self.max_tokens}")


@dataclass
class StageTimes:
    """Where one stage's share of an answer's time went, in seconds."""

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
    stages: list[StageTimes] = field(default_factory=list)

    def token(self, now_s: float) -> None:
        """Note that a token was sampled."""
        if not self.tokens:
            self.first_token_s = now_s
        self.last_token_s = now_s
        self.tokens += 1

    @property
    def ttft_s(self) -> float:
        """From the request to its first token."""
        return self.first_token_s - self.submitted_s if self.tokens else 0.0

    @property
    def decode_tok_s(self) -> float:
        """Rate without the first token: (N - 1) / (last - first)."""
        span = self.last_token_s - self.first_token_s
        return (self.tokens - 1) / span if self.tokens > 1 and span > 0 else 0.0

    @property
    def e2e_tok_s(self) -> float:
        """Rate with the first token: N / (last - request)."""
        span = self.last_token_s - self.submitted_s
        return self.tokens / span if self.tokens and span > 0 else 0.0
