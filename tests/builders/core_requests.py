"""Requests for the engine core and its parts: token ids and a state, nothing that samples."""

from __future__ import annotations

from collections.abc import Sequence

from edgepp.engine.request import Request
from edgepp.engine.timing import Timing


def make_request(
    number: int, ids: Sequence[int], max_tokens: int = 10, owner: str = "ann", sequence: int = 0
) -> Request:
    """A request with the prompt ``ids``; with a ``sequence`` as if it were admitted."""
    return Request(
        id=number,
        owner=owner,
        ids=list(ids),
        prompt_tokens=len(ids),
        max_tokens=max_tokens,
        timing=Timing(0.0),
        sequence=sequence,
    )
