"""A token that is a part of a character has its own bytes, and each token its place in the text."""

from __future__ import annotations

import pytest

from edgepp.http_api.generation import PromptLogprobs, TokenLogprob
from edgepp.http_api.openai_api.logprobs import chat_logprobs, legacy_logprobs


def test_a_part_of_a_character_has_its_own_bytes() -> None:
    token = TokenLogprob("\ufffd", -0.5, (("\ufffd", -0.5), ("a", -1.5)), b"\xc3", (b"\xc3", b"a"))
    (content,) = chat_logprobs([token])["content"]
    assert content["bytes"] == [0xC3]
    assert [one["bytes"] for one in content["top_logprobs"]] == [[0xC3], [0x61]]


def test_without_bytes_those_of_the_text_count() -> None:
    (content,) = chat_logprobs([TokenLogprob("é", -0.5, (("é", -0.5),))])["content"]
    assert content["bytes"] == [0xC3, 0xA9]
    assert content["top_logprobs"][0]["bytes"] == [0xC3, 0xA9]


@pytest.mark.parametrize(
    ("echo", "tokens", "places"),
    [
        ("日 a", [b"\xe6\x97", b"\xa5", b" a"], [0, 0, 1]),
        ("the lo", [b"<s>", b" the", b" lo"], [0, 0, 3]),
        ("the lo", [b" the", b" lo"], [0, 3]),
        ("<s>a  b", [b"<s>", b" a", b" b"], [0, 3, 6]),
    ],
)
def test_tokens_of_a_prompt_have_their_places_in_its_text(echo: str, tokens: list[bytes], places: list[int]) -> None:
    """Also behind a token that only the tokenizer writes, and where it writes another white space."""
    texts = [raw.decode(errors="replace") for raw in tokens]
    scored = tuple(TokenLogprob(text, -1.0, raw=raw) for text, raw in zip(texts[1:], tokens[1:], strict=True))
    answer = [TokenLogprob("\ufffd", -1.0, raw=b"\xc3"), TokenLogprob("\ufffd", -1.0, raw=b"\xa9")]
    told = legacy_logprobs(answer, len(echo), PromptLogprobs(0, texts[0], scored, tokens[0]), echo)
    assert told["text_offset"] == [*places, len(echo), len(echo)]
