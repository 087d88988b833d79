"""Sequences that suspended stages hold for their waiting requests, until these continue. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgepp.engine.prefix_cache import Ids
from edgepp.engine.request import Request
from edgepp.engine.scheduler import MIN_ROWS


@dataclass(frozen=True)
class SuspendedSequence:
    """A sequence of which the stages held positions when they were suspended."""

    sequence: int
    ids: Sequence[int] | Ids
    """Token ids, of at least as many positions."""
    positions: int
    """Positions that all stages had computed."""
    capacity: int = 0
    request: int = 0
    """Id of the request that goes on with it; 0 for a prefix that is kept."""

    @classmethod
    def of(cls, request: Request) -> SuspendedSequence:
        """The sequence of a live request."""
        return cls(request.sequence, request.ids, request.settled, request.capacity, request.id)


class RetainedSequences:
    """Sequences of requests that wait since their stages were suspended; each is for its request alone."""

    def __init__(self) -> None:
        self._held: dict[int, tuple[int, int]] = {}
        """Sequence, and positions that the stages hold of it, by the request's id."""

    @property
    def positions(self) -> int:
        """Positions of all retained sequences."""
        return sum(positions for _, positions in self._held.values())

    def retain(self, request: Request) -> None:
        """Retain the sequence of a live request."""
        self._held[request.id] = (request.sequence, request.settled)

    def of(self, request: Request) -> tuple[int, int] | None:
        """The sequence that is retained for a request, and the positions that the stages hold of it; None for none."""
        return self._held.get(request.id)

    def drop(self, request: Request) -> list[int]:
        """Retain no sequence for a request any more; returns the sequence to free, if one was retained."""
        sequence, _ = self._held.pop(request.id, (0, 0))
        return [sequence] if sequence else []

    def shorten(self, request: Request, lengths: Mapping[int, int]) -> list[int]:
        """Note how many positions the stages hold, by sequence; the sequence if it is of no use now, or nothing."""
        if request.id not in self._held:
            return []
        sequence, held = self._held[request.id]
        # a token is sampled from a result that was lost, so its position is computed once more
        usable = min(held, lengths.get(sequence, 0), len(request.ids) - (1 if request.tokens else MIN_ROWS))
        if usable <= 0:
            return self.drop(request)
        self._held[request.id] = (sequence, usable)
        return []
