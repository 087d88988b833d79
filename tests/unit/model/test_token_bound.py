"""No text has fewer tokens than the bound says."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from edgepp.model.text.token_bound import TokenBound, characters_per_token

MERGES = [("Ġ", "Ġ"), ("ĠĠ", "ĠĠ"), ("a", "b"), ("Ġ", "ab"), ("ab", "ab")]
PIECES = ["▁", "▁▁", "a", "b", "ab", "abab"]


def byte_level() -> Tokenizer:
    alphabet = sorted(set(pre_tokenizers.ByteLevel.alphabet()) - set("ôĂ"))  # without the bytes 0xF4 and 0x02
    tokens = [*alphabet, *("".join(pair) for pair in MERGES)]
    made = Tokenizer(models.BPE({token: place for place, token in enumerate(tokens)}, MERGES))
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.add_special_tokens([AddedToken("<|end|>", rstrip=True)])
    return made


def byte_fallback() -> Tokenizer:
    pieces = [("<unk>", 0.0), *((f"<0x{byte:02X}>", -9.0) for byte in range(256)), *((piece, -1.0) for piece in PIECES)]
    made = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return made


def unknown() -> Tokenizer:
    return Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0))


def lowering() -> Tokenizer:
    made = byte_level()
    made.normalizer = normalizers.StripAccents()
    return made


def dropping() -> Tokenizer:
    made = byte_level()
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split("x", "removed"), pre_tokenizers.ByteLevel()])
    return made


BOUNDED = {
    made: (tokenizer, TokenBound.of(json.loads(tokenizer.to_str())))
    for made, tokenizer in (("byte_level", byte_level()), ("byte_fallback", byte_fallback()))
}


@pytest.mark.parametrize("made", BOUNDED)
@given(text=st.text(st.sampled_from("ab  \t\n▁Ġé\u0301\u0308\u1100\u1161\u11a8e<|end|>𝔞\u3000")) | st.text())
@example(text="\u1112\u1161\u11ab" * 20)
@example(text="▁▁" * 30)
@example(text="\x02" * 30 + "\U00100000" * 10)
@example(text="<|end|>" + 50 * " ")
def test_no_text_has_fewer_tokens(made: str, text: str) -> None:
    tokenizer, bound = BOUNDED[made]
    assert bound is not None
    assert bound.least_tokens(text) <= len(tokenizer.encode(text, add_special_tokens=False).ids)


def test_the_bound_is_not_far_off() -> None:
    assert [bound and bound.bytes_per_token for _, bound in BOUNDED.values()] == [3 * len("<|end|>"), len("<0x00>")]
    assert TokenBound(7, b"x").least_tokens(" x ab" * 700) == 200


@pytest.mark.parametrize("make", [byte_level, byte_fallback])
@given(text=st.text(st.sampled_from("ab  \t\n▁é\u0301\u0308\u1100\u1161\u11a8𝔞")) | st.text())
@example(text="\n" * 100)
def test_characters_bound_the_tokens_too(make: Callable[[], Tokenizer], text: str) -> None:
    tokenizer, _ = BOUNDED[make.__name__]
    tokens = len(tokenizer.encode(text, add_special_tokens=False).ids)
    assert len(text) // characters_per_token(json.loads(tokenizer.to_str())) <= tokens


def test_each_tokenizer_has_a_bound_of_characters() -> None:
    definitions = [json.loads(make().to_str()) for make in (byte_level, byte_fallback, unknown)]
    assert [characters_per_token(one) for one in definitions] == [4 * len("<|end|>"), 4 * len("<0x00>"), len("<unk>")]


@pytest.mark.parametrize("make", [unknown, lowering, dropping])
def test_a_tokenizer_that_shortens_text_has_no_bound(make: Callable[[], Tokenizer]) -> None:
    assert TokenBound.of(json.loads(make().to_str())) is None
