"""A token that is a part of a character has its own bytes."""

from __future__ import annotations

from edgepp.http_api.generation import TokenLogprob
from edgepp.http_api.openai_api.logprobs import chat_logprobs


def test_a_part_of_a_character_has_its_own_bytes() -> None:
    token = TokenLogprob("\ufffd", -0.5, (("\ufffd", -0.5), ("a", -1.5)), b"\xc3", (b"\xc3", b"a"))
    (content,) = chat_logprobs([token])["content"]
    assert content["bytes"] == [0xC3]
    assert [one["bytes"] for one in content["top_logprobs"]] == [[0xC3], [0x61]]


def test_without_bytes_those_of_the_text_count() -> None:
    (content,) = chat_logprobs([TokenLogprob("é", -0.5, (("é", -0.5),))])["content"]
    assert content["bytes"] == [0xC3, 0xA9]
    assert content["top_logprobs"][0]["bytes"] == [0xC3, 0xA9]
