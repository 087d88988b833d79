"""An answer that is held to a constraint matches the constraint as text, for each kind of tokenizer."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from edgepp.engine.constrained_decoding import ConstraintCompiler
from edgepp.engine.request import Constraint
from edgepp.errors import UsageError
from edgepp.model.text.detokenizer import detokenizer_factory

END = "</s>"
UNKNOWN = "<unk>"
WORDS = [
    "▁",
    "▁▁",
    "▁yes",
    "yes",
    "no",
    "▁no",
    "y",
    "e",
    "s",
    "n",
    "o",
    "\n",
    "日",
    "<",
    ">",
    "<0x",
    "0x",
    "0",
    "x",
    "4",
    "1",
]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
MERGES = [("▁", "▁"), ("n", "o"), ("▁", "no"), ("0", "x"), ("<", "0x")]
SPM = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
SPACE = normalizers.Replace(" ", "▁")
METASPACE = pre_tokenizers.Metaspace(prepend_scheme="first")
EXPRESSIONS = [" (yes|no)", "  yes", "(yes|no)  ", "[ \n]{4}no", "[日本]{2,3}", "é?no", "no <0x41>"]


def bpe(normalizer: object, pre_tokenizer: object, decoder: object) -> Tokenizer:
    vocabulary = {text: place for place, text in enumerate(["<unk>", END, *BYTES, *WORDS])}
    tokenizer = Tokenizer(models.BPE(vocabulary, MERGES, unk_token=UNKNOWN, byte_fallback=True))
    return with_parts(tokenizer, normalizer, pre_tokenizer, decoder)


def unigram(decoder: object, texts: list[str], *, byte_fallback: bool) -> Tokenizer:
    pieces = [(text, -1.0 - place / 10) for place, text in enumerate(["<unk>", END, *texts])]
    tokenizer = Tokenizer(models.Unigram(pieces, 0, byte_fallback))
    return with_parts(tokenizer, None, METASPACE, decoder)


def with_parts(tokenizer: Tokenizer, normalizer: object, pre_tokenizer: object, decoder: object) -> Tokenizer:
    for name, part in {"normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "decoder": decoder}.items():
        if part is not None:
            setattr(tokenizer, name, part)
    tokenizer.add_special_tokens([AddedToken(END, special=True, normalized=False)])
    return tokenizer


PREPENDED = normalizers.Sequence([normalizers.Prepend("▁"), SPACE])
MIXED = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first")])
TOKENIZERS = {
    "llama": bpe(PREPENDED, None, decoders.Sequence([*SPM, decoders.Strip(" ", 1, 0)])),
    "gemma": bpe(SPACE, None, decoders.Sequence(SPM)),
    "metaspace and bytes": bpe(None, METASPACE, MIXED),
    "unigram and bytes": unigram(MIXED, [*WORDS, *BYTES], byte_fallback=True),
    "unigram": unigram(decoders.Metaspace(prepend_scheme="first"), WORDS, byte_fallback=False),
    "unigram with names like bytes": unigram(decoders.Metaspace(), [*WORDS, *BYTES], byte_fallback=False),
}
NOT_SPELLED = {
    ("unigram and bytes", "no <0x41>"),
    ("unigram", "[日本]{2,3}"),
    ("unigram with names like bytes", "[日本]{2,3}"),
}
"""Tokenizers and expressions that no answer matches."""


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_an_answer_matches_its_expression_from_end_to_end(name: str, expression: str) -> None:
    tokenizer = TOKENIZERS[name]
    definition = json.loads(tokenizer.to_str())
    texts = {token: text for text, token in tokenizer.get_vocab().items()}
    end = tokenizer.get_vocab()[END]
    compiler = ConstraintCompiler(tokenizer.to_str(), {end})
    if (name, expression) in NOT_SPELLED:
        with pytest.raises(UsageError, match=r"tokens of this model cannot spell|allows no text"):
            compiler.compile(Constraint("regex", expression))
        return
    for seed in range(8):
        matcher = compiler.compile(Constraint("regex", expression))
        draw, detokenizer, text = np.random.default_rng(seed), detokenizer_factory(definition["decoder"])(texts), ""
        while not matcher.done:
            token = int(matcher.mask(draw.standard_normal(len(texts)).astype(np.float32)).argmax())
            if token == end:
                break
            matcher.advance(token)
            text += detokenizer.add(token)
        text += detokenizer.finish()
        assert re.fullmatch(expression, text), (text, seed)
