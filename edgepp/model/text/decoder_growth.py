"""Limit of the length that the decoders of a model's tokenizer may give to one token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgepp.errors import ModelError

_MAX_STEPS = 64
_MAX_GROWTH = 16.0


def check_growth(chain: Sequence[Mapping[str, Any]]) -> None:
    """Check that the decoders of ``chain`` make no text much longer: forty doublings would make one token fill memory.

    Raises:
        ModelError: the decoders make a text much longer, or there are absurdly many decoders.
    """
    growth = 1.0
    for one in chain:
        match one:
            case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)}:
                growth *= max(1.0, len(new) / max(1, len(old)))
            case {"type": "BPEDecoder", "suffix": ""} | {"type": "CTC", "word_delimiter_token": ""}:
                growth *= 2
    if len(chain) > _MAX_STEPS or growth > _MAX_GROWTH:
        raise ModelError(
            f"its tokenizer has {len(chain)} decoders that make a token up to {growth:.0f} times as long",
            "use another model, or one of `edgepp models list`",
        )
