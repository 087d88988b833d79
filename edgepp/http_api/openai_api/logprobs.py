"""Log-probabilities of tokens, in the forms of chat completions and of legacy completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgepp.http_api.generation import PromptLogprobs, TokenLogprob

_LEAST = -9999.0
"""OpenAI's log-probability of a token that cannot come; JSON has no infinity."""


def chat_logprobs(tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    """``choices[].logprobs`` of a chat completion."""
    return {
        "content": [
            _token(token.text, token.logprob, token.utf8) | {"top_logprobs": [_token(*one) for one in token.rivals]}
            for token in tokens
        ],
        "refusal": None,
    }


def legacy_logprobs(
    tokens: Sequence[TokenLogprob], offset: int, prompt: PromptLogprobs | None = None, echo: str = ""
) -> dict[str, Any]:
    """``choices[].logprobs`` of a legacy completion, whose text begins at the character ``offset``.

    The tokens of the ``prompt``, if given, come before, with places in its text ``echo``.
    """
    read = () if prompt is None else prompt.tokens
    firsts = [] if prompt is None else [prompt.first]
    # a token that only the tokenizer writes, such as that of the beginning, is no text of the prompt
    at = len(firsts[0]) if firsts and echo.startswith(firsts[0]) else 0
    return {
        "tokens": [*firsts, *(token.text for token in (*read, *tokens))],
        "token_logprobs": [*(None for _ in firsts), *(max(_LEAST, token.logprob) for token in (*read, *tokens))],
        "top_logprobs": [*(None for _ in firsts), *(_top(token) for token in (*read, *tokens))],
        "text_offset": [*(0 for _ in firsts), *_offsets(read, at), *_offsets(tokens, offset)],
    }


def _top(token: TokenLogprob) -> dict[str, float]:
    """The likeliest tokens by their texts; of several with one text, such as parts of characters, the likeliest."""
    return {text: max(_LEAST, logprob) for text, logprob in reversed(token.top)}


def _offsets(tokens: Sequence[TokenLogprob], offset: int) -> list[int]:
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.text)
    return offsets


def _token(text: str, logprob: float, utf8: list[int]) -> dict[str, Any]:
    return {"token": text, "logprob": max(_LEAST, logprob), "bytes": utf8}
