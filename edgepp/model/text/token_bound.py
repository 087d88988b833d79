"""Lower bounds of the number of tokens of a text, found without encoding, so that a long text is refused early.

``characters_per_token`` is a rough bound for any tokenizer and all characters, white space included, and ``TokenBound``
a closer one for the tokenizers that it knows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from edgepp.model.text.detokenizer import BYTE_OF_CHARACTER

_NFC_SHRINKS = 3
"""Largest factor by which NFC shortens UTF-8: the inverse of NFD's largest expansion (Unicode Annex 15, table 9)."""
_COMPOSED = 4
"""Largest number of characters that a normalizer composes to one, such as a Greek letter with three marks."""
_MAY_BE_UNKNOWN = {*range(0x20), 0xC0, 0xC1, *range(0xF1, 0x100)}
"""Bytes that a vocabulary may lack and NFC never makes: control characters, planes past 3, and what is not UTF-8."""
_PRE_TOKENIZERS = {"ByteLevel", "Digits", "Metaspace", "Punctuation", "Split", "Whitespace", "WhitespaceSplit"}
"""Pre-tokenizers that drop nothing but white space, unless their behaviour is "Removed"."""


@dataclass(frozen=True)
class TokenBound:
    """A lower bound of the number of tokens, for one tokenizer."""

    bytes_per_token: int
    """Largest number of counted bytes of a text that one token stands for."""
    uncounted: bytes = b""
    """Bytes without a token, which the tokenizer drops. White space is not counted either."""

    def least_tokens(self, text: str) -> int:
        """The fewest tokens that ``text`` can have."""
        counted = "".join(text.split()).encode().translate(None, self.uncounted)
        return -(-len(counted) // self.bytes_per_token)

    @classmethod
    def of(cls, definition: Mapping[str, Any]) -> TokenBound | None:
        """The bound for the tokenizer of ``definition``, a parsed ``tokenizer.json``.

        None where the tokenizer drops text other than white space and ``uncounted`` bytes, shortens text otherwise than
        by NFC, or makes one token of many unknown characters.
        """
        shrinks = _shrinking(_parts(definition.get("normalizer"), "normalizers"))
        pre_tokenizers = _parts(definition.get("pre_tokenizer"), "pretokenizers")
        if shrinks is None or any(
            one["type"] not in _PRE_TOKENIZERS or one.get("behavior") == "Removed" for one in pre_tokenizers
        ):
            return None
        model, added = definition["model"], [one["content"] for one in definition["added_tokens"]]
        tokens = list(model["vocab"]) if isinstance(model["vocab"], dict) else [token for token, _ in model["vocab"]]
        known = set(tokens)
        if any(one["type"] == "ByteLevel" for one in pre_tokenizers):
            unknown = {byte for character, byte in BYTE_OF_CHARACTER.items() if character not in known}
            lengths = [len(token.replace("Ġ", "")) for token in tokens]  # Ġ is the space
        elif model.get("byte_fallback"):
            unknown = {byte for byte in range(256) if f"<0x{byte:02X}>" not in known}
            lengths = [len(token.encode()) for token in tokens]
        else:
            return None
        if not unknown <= _MAY_BE_UNKNOWN:
            return None
        longest = max(1, *lengths, *(len(content.encode()) for content in added))
        return cls(shrinks * longest, bytes(sorted(unknown)))


def characters_per_token(definition: Mapping[str, Any]) -> int:
    """Largest number of characters of a text that one token of ``definition``, a parsed ``tokenizer.json``, stands for.

    A text can have fewer tokens only where its tokenizer drops text, such as white space beside a control token, or
    makes one token of several unknown characters.
    """
    vocabulary, added = definition["model"]["vocab"], definition["added_tokens"]
    tokens = vocabulary if isinstance(vocabulary, dict) else (token for token, _ in vocabulary)
    longest = max(1, *map(len, tokens), *(len(one["content"]) for one in added))
    return longest * (_COMPOSED if definition.get("normalizer") else 1)


def _shrinking(normalizers: Iterable[Mapping[str, Any]]) -> int | None:
    """Largest factor by which ``normalizers`` together shorten UTF-8; None where they may drop text."""
    shrinks = 1
    for one in normalizers:
        if one["type"] == "NFC":
            shrinks = _NFC_SHRINKS
        elif one["type"] == "Replace":
            if one["pattern"] != {"String": " "} or not one["content"]:
                return None
        elif one["type"] != "Prepend":
            return None
    return shrinks


def _parts(part: Mapping[str, Any] | None, name: str) -> list[Mapping[str, Any]]:
    """The parts of a normalizer or pre-tokenizer that is a sequence, else the normalizer or pre-tokenizer alone."""
    if part is None:
        return []
    if part["type"] == "Sequence":
        return [inner for one in part[name] for inner in _parts(one, name)]
    return [part]
