"""Model names of other programs: Ollama's ``llama3.1:8b-instruct-q4_K_M`` means the card ``llama-3.1-8b-4bit``."""

from __future__ import annotations

import re
from collections.abc import Collection

_NAME = re.compile(r"(?P<family>[a-z]+[a-z.-]*?)-?(?P<version>\d+(\.\d+)?)(?::(?P<tag>[\w.-]+)|-(?P<rest>[\w.-]+))?")
_SIZE = re.compile(r"\d+(\.\d+)?[mb]")
_BITS = (
    (re.compile(r"(i?q4(_\w+)?|4bits?|int4)"), "4bit"),
    (re.compile(r"(i?q8(_\w+)?|8bits?|int8)"), "8bit"),
    (re.compile(r"(bf16|fp16|f16)"), "bf16"),
)
_IGNORED_TAGS = {"latest", "instruct", "it", "chat"}  # every card is of an instruction-tuned model


def candidates(name: str, cards: Collection[str]) -> list[str]:
    """The cards that ``name`` may mean; none if ``name`` has another form, or asks for a model without a card.

    A name without a quantisation means the card with the fewest bits, as in Ollama.
    """
    match = _NAME.fullmatch(name.lower())
    if match is None:
        return []
    prefixes = [f"{match['family']}-{match['version']}-", f"{match['family']}{match['version']}-"]
    size = bits = None
    for part in re.split("-", match["tag"] or match["rest"] or ""):
        kind = next((kind for pattern, kind in _BITS if pattern.fullmatch(part)), None)
        if _SIZE.fullmatch(part) and size is None:
            size = part
        elif kind is not None and bits is None:
            bits = kind
        elif part and part not in _IGNORED_TAGS:
            return []
    family = [card for card in cards if card.startswith(tuple(prefixes))]
    sized = [card for card in family if size is None or f"-{size}-" in f"{card}-"]
    if bits is not None:
        return [card for card in sized if card.endswith(f"-{bits}")]
    return _smallest(sized)


def _smallest(cards: list[str]) -> list[str]:
    """The card with the fewest bits of each size; a card without a suffix has the fewest."""
    best: dict[str, tuple[int, str]] = {}
    for card in cards:
        stem, _, suffix = card.rpartition("-")
        rank = {"4bit": 1, "8bit": 2, "bf16": 3}.get(suffix, 0)
        stem = card if rank == 0 else stem
        if stem not in best or rank < best[stem][0]:
            best[stem] = (rank, card)
    return [card for _, card in best.values()]
