"""Numbers of an answer that has ended, for statistics and logs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from edgepp.engine.ring import StageInfo
from edgepp.engine.timing import Timing
from edgepp.structured_log import fields

log = logging.getLogger("edgepp.coordinator")


@dataclass(frozen=True)
class EndedAnswer:
    """Numbers of an answer that has ended, for statistics."""

    outcome: Literal["stop", "length", "cancelled", "error"]
    prompt_tokens: int
    tokens: int
    timing: Timing
    stages: tuple[StageInfo, ...]
    e2e_s: float
    """Seconds from the question to the end."""
    gaps_s: Sequence[float] = ()
    """Seconds between one piece of text and the next."""


OnEnded = Callable[[EndedAnswer], None]


def log_answer(request_id: str, ended: EndedAnswer) -> None:
    """Log how an answer ended: numbers, and no text."""
    if not log.isEnabledFor(logging.INFO):
        return
    timing = ended.timing
    facts = fields(
        "request_answered",
        request_id,
        outcome=ended.outcome,
        prompt_tokens=ended.prompt_tokens,
        reused_tokens=timing.reused,
        tokens=ended.tokens,
        queued_s=round(timing.queued_s, 6),
        ttft_s=round(timing.ttft_s, 6),
        tokens_per_s=round(timing.decode_tokens_per_s, 3),
        recoveries=len(timing.recoveries),
        e2e_s=round(ended.e2e_s, 6),
    )
    log.info("a request was answered: %s", ended.outcome, extra=facts)
