"""Which tokens of a tokenizer are control tokens, which text of a message never becomes."""

from __future__ import annotations

import re


def is_control(name: str, special: bool) -> bool:
    """Whether an added token is a control token: a special one, or one that is no word and no white space.

    ``<tool_call>`` is one, though many tokenizers do not mark it as special.
    """
    return bool(name) and (special or not re.fullmatch(r"[\w\s]+", name))
