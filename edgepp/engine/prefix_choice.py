"""The choice of the prefix that a request shares with another sequence, when the request is admitted. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from edgepp.engine.prefix_cache import MIN_SHARED_TOKENS, KeptSequence, PrefixCache, common
from edgepp.engine.request import Request
from edgepp.engine.scheduler import MIN_ROWS

_MAX_LOSS = 32
"""A kept sequence is taken over if at most one in so many of its positions is lost by that; else it is copied."""


@dataclass(frozen=True)
class SharedPrefix:
    """A prefix that a request can share: ``length`` positions of ``source``, taken over (``moves``) or copied."""

    source: int = 0
    length: int = 0
    moves: bool = False
    kept: KeptSequence | None = None
    """The kept sequence that ``source`` is; None for a live one."""


def choose_prefix(
    request: Request,
    prefixes: PrefixCache,
    ended: Iterable[Request],
    live: Iterable[Request],
    copy_fits: Callable[[KeptSequence, int], bool],
) -> SharedPrefix | None:
    """The longest prefix that ``request`` can share now; None if a longer one is being computed.

    The prefix is one of ``prefixes`` or of a ``live`` request. Requests that have ``ended`` still have steps in the
    ring. ``copy_fits`` tells whether there is room for so many positions beside a kept sequence.
    """
    ids = request.known(max(0, len(request.ids) - MIN_ROWS))  # at least ``MIN_ROWS`` rows are always computed
    best = SharedPrefix()
    found = prefixes.find(request.owner, ids)
    if found is not None:
        kept, length = found
        best = SharedPrefix(kept.sequence, length, _is_short(kept, length) or not copy_fits(kept, len(ids)), kept)
    for other in ended:
        held = min(other.sent, len(ids))
        if other.owner == request.owner and common(other.known(held), ids) > max(best.length, MIN_SHARED_TOKENS):
            return None
    for other in live:
        if other.owner != request.owner:
            continue
        shared = common(other.known(min(len(other.ids), len(ids))), ids)
        if min(shared, other.sent) > best.length and min(shared, other.sent) >= MIN_SHARED_TOKENS:
            best = SharedPrefix(other.sequence, min(shared, other.sent))
        if not other.status.decodes and shared > max(other.sent, best.length, MIN_SHARED_TOKENS):
            return None
    return best


def _is_short(kept: KeptSequence, shared: int) -> bool:
    """Whether what a kept sequence has beyond ``shared`` positions may be lost, so that no copy is needed."""
    return len(kept.ids) - shared <= max(MIN_SHARED_TOKENS, len(kept.ids) // _MAX_LOSS)
