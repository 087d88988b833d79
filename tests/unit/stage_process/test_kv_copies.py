"""Kept copies against a model of them, with a sender that follows the rules and one that does not."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from edgepp.errors import RemoteProtocolError
from edgepp.layer_range import LayerRange
from edgepp.stage_process.kv_copies import MAX_FRAMES, PIECE_OVERHEAD_BYTES, KvCopies
from edgepp.stage_process.kv_pieces import CachePiece, Cut
from edgepp.stage_process.sequence_state import Key

LAYERS, EACH = LayerRange(2, 4), 3
MAX_BYTES = 40 * (len(LAYERS) * EACH + PIECE_OVERHEAD_BYTES)
KEYS = st.tuples(st.integers(1, 2), st.integers(1, 2))


def data(first: int, start: int, stop: int) -> bytes:
    """Bytes of some layers and positions, which differ for each write."""
    return b"".join(
        bytes([layer, first % 251, position % 251]) for layer in LAYERS_OF for position in range(start, stop)
    )


LAYERS_OF = range(LAYERS.start, LAYERS.stop)


class CopiesMachine(RuleBasedStateMachine):
    """Pieces at any positions, cancellations and inheritance, in any order; all pieces are of the same step."""

    def __init__(self) -> None:
        super().__init__()
        self.copies = KvCopies(MAX_BYTES)
        self.kept: dict[Key, list[tuple[int, int, bytes]]] = {}
        self.writes = 0

    @rule(key=KEYS, start=st.integers(0, 12), count=st.integers(1, 5))
    def piece(self, key: Key, start: int, count: int) -> None:
        self.writes += 1
        piece = (start, start + count, data(self.writes, start, start + count))
        pieces = [] if start == 0 else self.kept.get(key, [])
        boundaries = {0, *(one[0] for one in pieces), *(one[1] for one in pieces[-1:])}
        before = [one for one in pieces if one[0] < start]
        others = [one for other, pieces in self.kept.items() if other != key for one in pieces]
        has_room = size(*before, *others, piece) <= MAX_BYTES
        refused = False
        try:
            self.copies.keep(key, CachePiece(LAYERS, *piece), "form", 1)
        except RemoteProtocolError:
            refused = True
        assert refused == (start not in boundaries or not has_room)
        if start in boundaries:
            self.kept[key] = before if refused else [*before, piece]
            if not self.kept[key]:
                del self.kept[key]

    @rule(key=KEYS)
    def free(self, key: Key) -> None:
        self.copies.free(key)
        self.kept.pop(key, None)

    @rule(key=KEYS, position=st.integers(0, 15))
    def go_back(self, key: Key, position: int) -> None:
        self.copies.computed(key, position, 1)
        self.kept[key] = [one for one in self.kept.get(key, []) if one[1] <= position]
        if not self.kept[key]:
            del self.kept[key]
        self.copies._frames.clear()  # so that the next pieces are not out of date

    @rule()
    def inherit(self) -> None:
        self.copies.forget(2)
        self.copies.inherit(1, 2)
        self.kept = {(2, sequence): pieces for (epoch, sequence), pieces in self.kept.items() if epoch == 1}

    @invariant()
    def agrees(self) -> None:
        for epoch in (1, 2):
            lengths = {key[1]: pieces[-1][1] for key, pieces in self.kept.items() if key[0] == epoch}
            assert self.copies.lengths(epoch) == ({LAYERS: lengths} if lengths else {})
        for key, pieces in self.kept.items():
            assert [one[1] for one in pieces[:-1]] == [one[0] for one in pieces[1:]]
            found = self.copies.pieces(key, LAYERS, 0, pieces[-1][1], "form")
            assert found == [CachePiece(LAYERS, *one) for one in pieces]
            assert self.copies.pieces(key, LAYERS, 0, pieces[-1][1] + 1, "form") is None
        assert self.copies.nbytes == size(*(one for pieces in self.kept.values() for one in pieces)) <= MAX_BYTES


def size(*pieces: tuple[int, int, bytes]) -> int:
    return sum(len(one[2]) + PIECE_OVERHEAD_BYTES for one in pieces)


TestCopies = CopiesMachine.TestCase


def kept(*pieces: tuple[int, int, int, int, bytes]) -> KvCopies:
    copies = KvCopies(1 << 20)
    for first, stop, start, end, raw in pieces:
        copies.keep((1, 1), CachePiece(LayerRange(first, stop), start, end, raw), "form", 1)
    return copies


def test_single_layers_are_taken_out_of_a_piece() -> None:
    copies = kept((2, 4, 0, 2, b"aabb"), (2, 4, 2, 3, b"cd"), (4, 5, 0, 3, b"xyz"))
    found = copies.pieces((1, 1), LayerRange(3, 5), 1, 3, "form")
    parts = [(3, 4, 0, 2, b"bb"), (3, 4, 2, 3, b"d"), (4, 5, 0, 3, b"xyz")]
    assert found == [CachePiece(LayerRange(first, stop), *rest) for first, stop, *rest in parts]
    later = copies.pieces((1, 1), LayerRange(2, 4), 2, 3, "form")
    assert [one.start for one in later or ()] == [2]


@pytest.mark.parametrize(
    ("layers", "stop", "layout"),
    [((1, 4), 3, "form"), ((2, 6), 3, "form"), ((2, 4), 4, "form"), ((2, 4), 3, "another"), ((4, 5), 1, "form")],
)
def test_what_is_not_all_kept_is_none(layers: tuple[int, int], stop: int, layout: str) -> None:
    copies = kept((2, 4, 0, 2, b"aabb"), (2, 4, 2, 3, b"cd"))
    assert copies.pieces((1, 1), LayerRange(*layers), 0, stop, layout) is None


def test_a_gap_between_layer_ranges_is_none() -> None:
    copies = kept((2, 3, 0, 1, b"a"), (4, 5, 0, 1, b"b"))
    assert copies.pieces((1, 1), LayerRange(2, 5), 0, 1, "form") is None


def test_a_beginning_of_other_layers_or_another_layout_replaces_what_overlaps() -> None:
    copies = kept((2, 4, 0, 2, b"aabb"), (3, 5, 0, 1, b"cc"), (6, 7, 0, 1, b"d"))
    assert set(copies.lengths(1)) == {LayerRange(3, 5), LayerRange(6, 7)}
    with pytest.raises(RemoteProtocolError, match="beginning is not kept"):
        copies.keep((1, 1), CachePiece(LayerRange(3, 5), 1, 2, b"ee"), "another", 1)


def test_copies_beyond_the_bound_are_refused_and_the_beginning_stays() -> None:
    copies = KvCopies(3 * (PIECE_OVERHEAD_BYTES + 10))
    for position in range(3):
        copies.keep((1, 1), CachePiece(LAYERS, position, position + 1, bytes(10)), "form", 1)
    with pytest.raises(RemoteProtocolError, match="more than"):
        copies.keep((1, 1), CachePiece(LAYERS, 3, 4, bytes(10)), "form", 1)
    assert copies.lengths(1) == {LAYERS: {1: 3}}


@pytest.mark.parametrize(
    ("layers", "layer_bytes", "max_bytes", "expected"),
    [
        (LayerRange(0, 4), 100, 4000, (4, 10)),
        (LayerRange(0, 4), 100, 399, (3, 1)),
        (LayerRange(2, 4), 1000, 10, (1, 1)),
        (LayerRange(0, 1), 1, 1 << 19, (1, 256)),
    ],
)
def test_pieces_are_cut_to_size(layers: LayerRange, layer_bytes: int, max_bytes: int, expected: Any) -> None:
    cut = Cut.of(layers, layer_bytes, max_bytes)
    assert (cut.layers_each, cut.positions_each) == expected
    groups = list(cut.groups())
    assert [layer for group in groups for layer in range(group.start, group.stop)] == list(
        range(layers.start, layers.stop)
    )


def test_a_copy_that_was_overwritten_is_dropped_wherever_it_is() -> None:
    copies = kept((2, 4, 0, 2, b"aabb"), (2, 4, 2, 3, b"cd"))
    under_way = CachePiece(LAYERS, 2, 3, b"ef")
    copies.computed((1, 1), 2, 1)
    assert copies.lengths(1) == {LAYERS: {1: 2}}
    copies.computed((1, 1), 3, 2)
    copies.keep((1, 1), under_way, "form", 1)
    assert copies.lengths(1) == {LAYERS: {1: 2}}
    copies.keep((1, 1), under_way, "form", 2)
    copies.computed((1, 1), 4, 3)
    assert copies.lengths(1) == {LAYERS: {1: 3}}


def test_a_copy_may_come_before_the_frame_that_it_was_taken_after() -> None:
    copies = kept((2, 4, 0, 2, b"aabb"))
    copies.keep((1, 1), CachePiece(LAYERS, 0, 2, b"ccdd"), "form", 8)
    copies.computed((1, 1), 1, 7)
    assert copies.lengths(1) == {LAYERS: {1: 2}}
    copies.computed((1, 1), 1, 8)
    assert copies.lengths(1) == {}


def test_the_frames_that_are_remembered_are_bounded() -> None:
    copies = KvCopies(1 << 20)
    for step in range(3 * MAX_FRAMES):
        copies.computed((1, 1), step, step)
    assert len(copies._frames[1, 1]._steps) == MAX_FRAMES
    copies.keep((1, 1), CachePiece(LAYERS, 0, 2, b"aabb"), "form", 5)
    assert copies.lengths(1) == {}
    copies.keep((1, 1), CachePiece(LAYERS, 0, 2, b"aabb"), "form", 3 * MAX_FRAMES)
    assert copies._frames[1, 1]._steps == []


def test_a_copy_takes_over_what_was_kept_before_it_began_and_nothing_later() -> None:
    copies = KvCopies(1 << 20)
    for start, step in ((0, 1), (2, 2), (4, 9)):
        copies.keep((1, 1), CachePiece(LAYERS, start, start + 2, bytes(4)), "form", step)
    copies.computed((1, 1), 3, 1)
    copies.fork((1, 1), (1, 2), 6)
    copies.free((1, 1))
    assert copies.lengths(1) == {LAYERS: {2: 4}}, "the last piece was taken after a step that is still to come"
    copies.computed((1, 2), 3, 2)
    assert copies.lengths(1) == {LAYERS: {2: 2}}
    copies.free((1, 2))
    assert copies.nbytes == 0
