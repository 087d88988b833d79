"""Streamed text is what the tokenizers library decodes, for every kind of tokenizer, and nothing is trimmed."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models

from edgepp.errors import ModelError
from edgepp.model.text.detokenizer import Detokenizer, detokenizer_factory
from tests.builders.properties import examples

WORDS = [
    *(
        "a",
        "b",
        "h",
        " ",
        "▁",
        "▁▁",
        "▁Hi",
        "lo",
        "##x",
        "w</w>",
        "é",
        " n't",
        " '",
        "s",
        "日",
        "!",
        "[PAD]",
        "|",
        "<0xZZ>",
    ),
    *("Ġ", "Ġthe", "Ã", "©", "æĹ", "¥", "ð", "Ł", "ĺ", "Ģ", "ĉ"),
]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
START = WORDS.index("h")
SPM = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
KINDS = {
    "byte level": decoders.ByteLevel(),
    "byte level alone in a sequence": decoders.Sequence([decoders.ByteLevel()]),
    "llama": decoders.Sequence([*SPM, decoders.Strip(" ", 1, 0)]),
    "gemma": decoders.Sequence(SPM),
    "strip from the end": decoders.Sequence([*SPM, decoders.Strip(" ", 1, 2)]),
    "replace across tokens": decoders.Sequence(
        [decoders.ByteFallback(), decoders.Fuse(), decoders.Replace("▁▁", "--"), decoders.Replace("lo", "L")]
    ),
    "metaspace": decoders.Metaspace(),
    "metaspace without a prefix": decoders.Metaspace(prepend_scheme="never"),
    "word pieces": decoders.WordPiece(),
    "word pieces as they are": decoders.WordPiece(cleanup=False),
    "none": None,
}


def build(decoder: decoders.Decoder | None) -> Tokenizer:
    """A tokenizer with a gap in its ids, a special and an added token."""
    tokens = {text: place + 7 * (place > 20) for place, text in enumerate([*WORDS, *BYTES])}
    tokenizer = Tokenizer(models.BPE(tokens, []))
    tokenizer.decoder = decoder  # type: ignore[assignment]
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True, normalized=False)])
    tokenizer.add_tokens(["<tool>"])
    return tokenizer


def detokenizer(tokenizer: Tokenizer) -> Detokenizer:
    decoder = tokenizer.decoder
    named = {token: tokenizer.id_to_token(token) for token in range(400)}
    tokens = {token: text for token, text in named.items() if text is not None}
    return detokenizer_factory(None if decoder is None else json.loads(decoder.__getstate__()))(tokens)


def stream(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    one = detokenizer(tokenizer)
    return [*(one.add(token) for token in ids), one.finish()]


IDS = st.lists(
    st.one_of(st.integers(0, len(WORDS)), st.integers(0, len(WORDS) + len(BYTES) + 12), st.just(1 << 30)), max_size=24
)


@pytest.mark.parametrize("kind", KINDS)
def test_streamed_text_is_the_decoded_text(kind: str) -> None:
    tokenizer = build(KINDS[kind])
    before = tokenizer.decode([START], skip_special_tokens=False)

    @given(IDS)
    @settings(max_examples=examples(150))
    def check(ids: list[int]) -> None:
        """Decode after a word, since an answer continues a text."""
        assert before + "".join(stream(tokenizer, ids)) == tokenizer.decode([START, *ids], skip_special_tokens=False)

    check()


@given(IDS)
@settings(max_examples=examples(150))
def test_a_suffix_is_a_space_unless_it_is_the_last(ids: list[int]) -> None:
    tokenizer = build(decoders.BPEDecoder())
    assert "".join(stream(tokenizer, ids)) == tokenizer.decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize("kind", ["llama", "gemma", "metaspace"])
def test_a_first_space_is_kept(kind: str) -> None:
    tokenizer = build(KINDS[kind])
    assert "".join(stream(tokenizer, [WORDS.index("▁Hi")])) == " Hi"


def test_no_part_of_a_character_is_returned() -> None:
    level, fallback = build(KINDS["byte level"]), build(KINDS["llama"])
    ids = [level.token_to_id(text) for text in ("a", "æĹ", "¥", "a", "æĹ")]
    assert stream(level, ids) == ["a", "", "日", "a", "", "\ufffd"]
    ids = [fallback.token_to_id(text) for text in ("<0xE6>", "<0x97>", "<0xA5>", "a", "<0xE6>")]
    assert stream(fallback, ids) == ["", "", "", "日a", "", "\ufffd"]


def test_ids_without_a_token_have_no_text() -> None:
    tokenizer = build(KINDS["byte level"])
    assert stream(tokenizer, [22, 10**6, 1 << 40, -1]) == [""] * 5


def test_tokens_at_which_the_library_panics_are_decoded() -> None:
    """Strip indexes out of bounds for empty and blank tokens in the library."""
    tokenizer = build(decoders.Strip(" ", 1, 1))
    assert "".join(stream(tokenizer, [WORDS.index(" "), WORDS.index("a")])) == "a"


def test_time_per_token_does_not_grow_with_the_answer() -> None:
    tokenizer = build(KINDS["llama"])

    def cpu_s(tokens: int) -> float:
        one, begun_s = detokenizer(tokenizer), time.process_time()
        for token in range(tokens):
            one.add(token % 20)
        return time.process_time() - begun_s

    cpu_s(1000)
    assert cpu_s(64_000) < 40 * max(cpu_s(8_000), 0.001), "8 times the tokens, not 64 times the time"


@pytest.mark.parametrize(
    "decoder", [decoders.Replace(Regex("a+"), "b"), decoders.Sequence([decoders.Fuse(), decoders.ByteLevel()])]
)
def test_an_unsupported_decoder_is_named(decoder: decoders.Decoder) -> None:
    with pytest.raises(ModelError, match="unsupported decoder"):
        detokenizer(build(decoder))


@pytest.mark.parametrize(
    ("kind", "bytes_of"),
    [
        ("byte level", {"Ġthe": b" the", "æĹ": b"\xe6\x97", "¥": b"\xa5", "<|end|>": b"<|end|>", "日": "日".encode()}),
        ("llama", {"▁Hi": b" Hi", "<0xE6>": b"\xe6", "<0xZZ>": b"<0xZZ>", "日": "日".encode(), "<tool>": b"<tool>"}),
        ("strip from the end", {"▁Hi": b" Hi", "<0x0A>": b"\n"}),
        ("metaspace", {"▁Hi": b" Hi", "<0xE6>": b"<0xE6>", "lo": b"lo"}),
        ("word pieces", {"##x": b"x", "lo": b" lo"}),
    ],
)
def test_a_token_alone_has_its_bytes(kind: str, bytes_of: dict[str, bytes]) -> None:
    tokenizer = build(KINDS[kind])
    for text, expected in bytes_of.items():
        token = tokenizer.token_to_id(text)
        assert token is not None
        assert detokenizer(tokenizer).only(token) == expected
    assert detokenizer(tokenizer).only(1 << 40) == b""


@pytest.mark.parametrize("kind", ["byte level", "llama", "gemma"])
@given(data=st.data())
@settings(deadline=None)
def test_the_bytes_of_tokens_are_those_of_their_text(kind: str, data: st.DataObject) -> None:
    """Where the tokens have whole characters together."""
    tokenizer = build(KINDS[kind])
    known = [token for token in range(300) if tokenizer.id_to_token(token)]
    ids = data.draw(st.lists(st.sampled_from(known), max_size=6))
    raw = b"".join(detokenizer(tokenizer).only(token) for token in ids)
    sequence = detokenizer(tokenizer)
    text = "".join([*map(sequence.add, ids), sequence.finish()])
    if "\ufffd" not in text:
        assert raw.decode() == text


@pytest.mark.parametrize(
    "chain",
    [
        [{"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}] * 40,
        [{"type": "Fuse"}, {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 100_000}],
        [{"type": "BPEDecoder", "suffix": ""}] * 40,
        [{"type": "ByteFallback"}] * 100_000,
    ],
)
def test_decoders_that_would_fill_the_memory_are_refused(chain: list[dict[str, Any]]) -> None:
    with pytest.raises(ModelError, match=r"decoders that make a token up to \d+ times as long"):
        detokenizer_factory({"type": "Sequence", "decoders": chain})
