"""How the keys and values that a ring lacks of a sequence are rebuilt: which stage process gives what to whom. Pure.

A stage of the new ring may hold the sequence itself. Else its keys and values are moved to it, bit for bit, layer by
layer from whichever stage processes hold them or copies of them. Else hidden states enter it once more: those that the
stage before it has logged, or for stage 0 the embeddings of the tokens. What no way brings back is prefilled.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from edgepp.engine.timing import RecoveryKind
from edgepp.layer_range import LayerRange
from edgepp.wire.field_types import HeldKind, KvSource

_FEW_POSITIONS = 16
"""Positions that may be given up, to be computed once more, so that fewer stages are refilled: that is not exact."""


@dataclass(frozen=True)
class Holding:
    """What a stage process holds: the first ``positions[s]`` positions of each sequence s."""

    holder: int
    """Number of the stage process: first come the stages of the new ring, in order, then others that can be asked."""
    what: HeldKind
    """Keys and values of its own ``layers``, copies of those of other ``layers``, or its own logged output."""
    layers: LayerRange
    positions: Mapping[int, int]


@dataclass(frozen=True)
class Move:
    """Keys and values of ``layers``, which ``holder`` sends to stage number ``stage``."""

    stage: int
    holder: int
    what: KvSource
    layers: LayerRange


@dataclass(frozen=True)
class Refill:
    """Hidden states that enter stage number ``first`` once more, and pass all stages up to number ``until``."""

    first: int
    until: int


@dataclass(frozen=True)
class Rebuild:
    """What has to be done so that every stage holds the first ``length`` positions of ``sequence``."""

    sequence: int
    length: int
    moves: tuple[Move, ...] = ()
    refills: tuple[Refill, ...] = ()

    @property
    def how(self) -> RecoveryKind:
        """Name of the way of rebuilding; ``prefill`` where no keys, values or hidden states are left."""
        if self.refills:
            return "log"
        if any(move.what == "copy" for move in self.moves):
            return "copies"
        return "transfer" if self.length else "prefill"

    @property
    def reporters(self) -> frozenset[int]:
        """Numbers of the stages whose ``Rebuilt`` shows that all stages hold the sequence."""
        return frozenset({refill.until for refill in self.refills} | {move.stage for move in self.moves})


def plan_rebuild(sequence: int, wanted: int, stages: Sequence[LayerRange], holdings: Sequence[Holding]) -> Rebuild:
    """The rebuild of as many as possible of the ``wanted`` positions of a sequence on ``stages``."""
    own = [_own(stage, layers, sequence, holdings) for stage, layers in enumerate(stages)]
    sources = [list(_sources(stage, layers, sequence, holdings)) for stage, layers in enumerate(stages)]
    moved = [min((positions for _, positions in parts), default=0) for parts in sources]
    logged = [wanted] + [_positions(sequence, stage, "log", holdings) for stage in range(len(stages) - 1)]
    for stage in range(1, len(stages)):
        if not own[stage - 1]:  # the log of a lost stage is lost; what enters the stage before it passes through
            logged[stage] = logged[stage - 1]
    ways = list(zip(own, moved, logged, strict=True))
    exact = min(wanted, *(max(held, brought) for held, brought, _ in ways))
    short = min(wanted, *(held or max(brought, fed) for held, brought, fed in ways))
    length = min(wanted, *map(max, ways)) if any(own) else exact
    length = next(fewer for fewer in (exact, short, length) if fewer + _FEW_POSITIONS >= length)
    lacking = [stage for stage in range(len(stages)) if own[stage] < length]
    moves = [move for stage in lacking if moved[stage] >= length for move, _ in sources[stage]]
    refilled = [stage for stage in lacking if moved[stage] < length]
    return Rebuild(sequence, length, tuple(moves), tuple(_refills(refilled)))


def _own(stage: int, layers: LayerRange, sequence: int, holdings: Sequence[Holding]) -> int:
    """Number of positions of the sequence that a stage of the new ring holds already."""
    found = (one for one in holdings if (one.holder, one.what, one.layers) == (stage, "kv", layers))
    return max((one.positions.get(sequence, 0) for one in found), default=0)


def _positions(sequence: int, holder: int, what: HeldKind, holdings: Sequence[Holding]) -> int:
    found = (one.positions.get(sequence, 0) for one in holdings if (one.holder, one.what) == (holder, what))
    return max(found, default=0)


def _sources(stage: int, layers: LayerRange, sequence: int, holdings: Sequence[Holding]) -> Iterator[tuple[Move, int]]:
    """The moves that bring all ``layers`` to a stage, each with its positions; none where a layer is lacking."""
    best = [_best_of(layer, stage, sequence, holdings) for layer in range(layers.start, layers.stop)]
    if any(one is None for one in best):
        return
    at = layers.start
    for _, run in groupby(best, key=id):
        holding, *more = run
        stop = at + 1 + len(more)
        if holding is not None and holding.what != "log":
            part = LayerRange(at, stop)
            yield Move(stage, holding.holder, holding.what, part), holding.positions[sequence]
        at = stop


def _best_of(layer: int, stage: int, sequence: int, holdings: Sequence[Holding]) -> Holding | None:
    """The holding with most positions of a ``layer`` for a stage; among equal holdings, the first."""
    found = [
        one
        for one in holdings
        if one.what != "log"
        and layer in one.layers
        and one.positions.get(sequence, 0)
        and not (one.holder == stage and one.what == "kv")
    ]
    return max(found, key=lambda one: one.positions[sequence], default=None)


def _refills(stages: Sequence[int]) -> Iterator[Refill]:
    """One refill per run of neighbouring ``stages``."""
    for _, run in groupby(enumerate(stages), key=lambda pair: pair[1] - pair[0]):
        members = [stage for _, stage in run]
        yield Refill(members[0], members[-1])
