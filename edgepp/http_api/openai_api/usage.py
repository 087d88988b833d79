"""Tokens and times of an answer: OpenAI's ``usage`` and llama-server's ``timings``."""

from __future__ import annotations

from typing import Any

from edgepp.engine.timing import Recovery
from edgepp.http_api.generation import Usage


def usage_body(usage: Usage) -> dict[str, Any]:
    """OpenAI's ``usage`` object."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": usage.reasoning_tokens,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def timings(usage: Usage) -> dict[str, Any]:
    """llama-server's ``timings``: tokens, milliseconds and rates of prefill and decode.

    The first token belongs to the prefill: decode has one token less than the answer. With ``recoveries`` if stages
    were lost during the answer: how each loss was survived, and how long the text paused.
    """
    computed = max(0, usage.prompt_tokens - usage.cached_tokens)
    decoded = max(0, usage.completion_tokens - 1)
    return {
        "cache_n": usage.cached_tokens,
        "prompt_n": computed,
        "prompt_ms": _ms(usage.prompt_s),
        "prompt_per_token_ms": _ms(_ratio(usage.prompt_s, computed)),
        "prompt_per_second": round(_ratio(computed, usage.prompt_s), 3),
        "predicted_n": usage.completion_tokens,
        "predicted_ms": _ms(usage.decode_s),
        "predicted_per_token_ms": _ms(_ratio(usage.decode_s, decoded)),
        "predicted_per_second": round(_ratio(decoded, usage.decode_s), 3),
        **({"recoveries": list(map(_recovery, usage.recoveries))} if usage.recoveries else {}),
    }


def _recovery(recovery: Recovery) -> dict[str, Any]:
    return {"how": recovery.how, "pause_ms": _ms(recovery.pause_s), "prefilled_n": recovery.prefilled}


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 3)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0
