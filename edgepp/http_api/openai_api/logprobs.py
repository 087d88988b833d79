"""Log-probabilities of tokens, in the forms of chat completions and of legacy completions."""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence
from typing import Any

from edgepp.http_api.generation import PromptLogprobs, TokenLogprob

_LEAST = -9999.0
"""OpenAI's log-probability of a token that cannot come; JSON has no infinity."""
_BLANK = re.compile(r"\s*")


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
    return {
        "tokens": [*firsts, *(token.text for token in (*read, *tokens))],
        "token_logprobs": [*(None for _ in firsts), *(max(_LEAST, token.logprob) for token in (*read, *tokens))],
        "top_logprobs": [*(None for _ in firsts), *(_top(token) for token in (*read, *tokens))],
        "text_offset": [
            *([] if prompt is None else _prompt_offsets(prompt.utf8, echo)),
            *(offset + token.begin for token in tokens),
        ],
    }


def _top(token: TokenLogprob) -> dict[str, float]:
    """The likeliest tokens by their texts; of several with one text, such as parts of characters, the likeliest."""
    return {text: max(_LEAST, logprob) for text, logprob in reversed(token.top)}


def _prompt_offsets(tokens: Sequence[bytes], echo: str) -> list[int]:
    """The places in ``echo``, the text of a prompt, at which the texts of its tokens begin."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    offsets: list[int] = []
    at = 0
    for token in tokens:
        text = decoder.decode(token)
        begin, end = _found(text, echo, at)
        if begin < 0:  # a token that only the tokenizer writes, such as that of the beginning, is no text of the prompt
            begin, end = at, min(at + len(text), len(echo)) if offsets else at
        offsets.append(begin)
        at = end
    return offsets


def _found(text: str, echo: str, at: int) -> tuple[int, int]:
    """Where ``text`` begins and ends in ``echo`` from ``at`` on, perhaps with other white space in front; else -1."""
    if echo.startswith(text, at):
        return at, at + len(text)
    bare, blank = text.lstrip(), _BLANK.match(echo, at)
    at = at if blank is None else blank.end()
    return (at, at + len(bare)) if bare and echo.startswith(bare, at) else (-1, -1)


def _token(text: str, logprob: float, utf8: list[int]) -> dict[str, Any]:
    return {"token": text, "logprob": max(_LEAST, logprob), "bytes": utf8}
