"""Control tokens of a tokenizer, which text of a message never becomes, and their names in grammars."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping


def is_control(name: str, special: bool) -> bool:
    """Whether an added token is a control token: a special one, or one that is no word and no white space.

    ``<tool_call>`` is a control token, though many tokenizers do not mark this token as special.
    """
    return bool(name) and (special or not re.fullmatch(r"[\w\s]+", name))


def grammar_literal(text: str, control_tokens: Mapping[str, int]) -> str:
    """Terms of a Lark grammar for ``text``, in which the names of control tokens are these tokens; empty for no text.

    ``control_tokens`` maps the names of a tokenizer's control tokens to ids. A string of a grammar never
    matches a special token.
    """
    names = [name for name in control_tokens if name and name in text]
    if not names:
        return json.dumps(text, ensure_ascii=False) if text else ""
    pieces = re.split(f"({'|'.join(re.escape(one) for one in sorted(names, key=len, reverse=True))})", text)
    terms = [
        f"<[{control_tokens[piece]}]>" if index % 2 else json.dumps(piece, ensure_ascii=False)
        for index, piece in enumerate(pieces)
        if piece
    ]
    return " ".join(terms)
