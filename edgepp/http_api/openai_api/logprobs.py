"""Log-probabilities of tokens, in the forms of chat completions and of legacy completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgepp.http_api.generation import TokenLogprob

_LEAST = -9999.0
"""What OpenAI writes for a token that cannot come; JSON has no infinity."""


def chat_logprobs(tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    """``choices[].logprobs`` of a chat completion."""
    return {
        "content": [
            _token(token.text, token.logprob, token.utf8) | {"top_logprobs": [_token(*one) for one in token.rivals]}
            for token in tokens
        ],
        "refusal": None,
    }


def legacy_logprobs(tokens: Sequence[TokenLogprob], offset: int) -> dict[str, Any]:
    """``choices[].logprobs`` of a legacy completion, whose text begins at the character ``offset``."""
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.text)
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [max(_LEAST, token.logprob) for token in tokens],
        "top_logprobs": [{text: max(_LEAST, logprob) for text, logprob in token.top} for token in tokens],
        "text_offset": offsets,
    }


def _token(text: str, logprob: float, utf8: list[int]) -> dict[str, Any]:
    return {"token": text, "logprob": max(_LEAST, logprob), "bytes": utf8}
