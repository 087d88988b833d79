"""Grammars tried on texts and on random tokens, with a tokenizer of bytes and the special tokens of the families."""

from __future__ import annotations

import json
import random
from functools import cache

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from edgepp.engine import grammar_sandbox
from edgepp.engine.request import Constraint

SPECIAL = (
    "<|eos|>", "<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", "<|end|>",
    "<|python_tag|>", "[TOOL_CALLS]", "[ARGS]", "<|tool_call_start|>", "<|tool_call_end|>",
)  # fmt: skip


@cache
def tokenizer() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({character: token for token, character in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(one, special=True, normalized=False) for one in SPECIAL])
    return made


@cache
def llguidance_tokens() -> LLTokenizer:
    return grammar_sandbox.tokenizer(tokenizer().to_str(), [special_tokens()["<|eos|>"]])


def special_tokens(template: str = "<|eos|>") -> dict[str, int]:
    """The special tokens that stand in ``template``."""
    return {one: tokenizer().token_to_id(one) for one in SPECIAL if one in template}


def matcher(constraint: Constraint) -> LLMatcher:
    made = grammar_sandbox.matcher(llguidance_tokens(), constraint.kind, constraint.text)
    assert not made.is_error(), made.get_error()
    return made


def is_allowed(constraint: Constraint | None, text: str, *, spell: bool = False) -> bool:
    """Whether a whole answer may be ``text``; with ``spell``, the names of special tokens are spelled byte by byte."""
    if constraint is None:
        return True
    made = matcher(constraint)
    pieces = list(text) if spell else [text]
    ids = [token for piece in pieces for token in tokenizer().encode(piece, add_special_tokens=False).ids]
    return made.try_consume_tokens(ids) == len(ids) and made.is_accepting()


def random_answer(constraint: Constraint, seed: int, limit: int = 3000) -> str:
    """The answer of a model whose weights are random: any allowed token, up to the end."""
    made, draw, ids = matcher(constraint), random.Random(seed), []  # noqa: S311
    while not made.is_stopped() and len(ids) < limit:
        allowed = np.unpackbits(np.frombuffer(made.compute_bitmask(), np.uint8), bitorder="little").nonzero()[0]
        token = int(draw.choice(allowed))
        if token == special_tokens()["<|eos|>"]:
            break
        assert made.consume_token(token)
        ids.append(token)
    return tokenizer().decode(ids, skip_special_tokens=False)


def bounded_tool_schema() -> dict[str, object]:
    """A schema that even random tokens fill in bounded length."""
    return json.loads(
        """{"type": "object", "properties": {
            "unit": {"enum": ["celsius", "fahrenheit"], "description": "x"},
            "days": {"type": "integer", "minimum": 1, "maximum": 14},
            "place": {"type": "object", "properties": {"kind": {"const": "city"}, "near": {"type": "boolean"}},
                      "required": ["kind", "near"], "additionalProperties": false},
            "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3}},
        "required": ["unit", "place"], "additionalProperties": false}"""
    )
