"""Log-probabilities beside the text of an answer are those of the tokens that make the text."""

from __future__ import annotations

import random
import re

import pytest

from edgepp.engine.sampling import Sampled
from edgepp.engine.text_stream import SpelledToken, TextPiece
from edgepp.http_api.content_tokens import ContentTokens
from edgepp.tool_calls.answer_parser import CallParser, SplitAnswerParser
from edgepp.tool_calls.json_calls import JsonCalls
from edgepp.tool_calls.reasoning import ReasoningSplitter, ThinkingMarkers
from edgepp.tool_calls.tool_use import Text

THINKING = ThinkingMarkers("<think>", "</think>")
CALL = '<tool_call>{"name": "f", "arguments": {"a": "so"}}</tool_call>'
ANSWERS = [
    "Yes, so it is.",
    "<think>\nYes?</think>\n\nYes, yes",
    "<think></think>think",
    "<think>so</think><so",
    "<think>a<b</think>a < b <t",
    f"so{CALL}",
    f"It is. {CALL}\n\n{CALL} so",
    f"<think>so</think>{CALL}",
]


def pieces(answer: str, seed: int) -> list[TextPiece]:
    """The answer in tokens of a few characters; some pieces hold several tokens."""
    draw, made = random.Random(seed), list[SpelledToken]()  # noqa: S311 - no secret
    for found in re.finditer(r"</?\w+>|.{1,3}?", answer, re.DOTALL):
        made.append(SpelledToken(0, found[0].encode(), Sampled(0, 0.0), found.start()))
    cut, parts = draw.randint(1, 3), list[TextPiece]()
    while made:
        some, made = made[:cut], made[cut:]
        parts.append(TextPiece(b"".join(one.raw for one in some).decode(), tuple(some)))
        cut = draw.randint(1, 3)
    return parts


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("seed", range(6))
def test_the_tokens_of_texts_make_the_texts(answer: str, seed: int) -> None:
    calls = CallParser({"<tool_call>": lambda: JsonCalls(("f",), "<tool_call>", ("</tool_call>",))})
    parser, content = SplitAnswerParser(ReasoningSplitter(THINKING, "possible"), calls), ContentTokens()
    text, raw = "", b""
    for piece in [*pieces(answer, seed), None]:
        if piece is not None:
            content.add(piece)
        for part in parser.finish() if piece is None else parser.add(piece.text):
            raw += b"".join(token.raw for token in content.take(part))
            text += part.text if isinstance(part, Text) else ""
    assert raw.decode() == text
