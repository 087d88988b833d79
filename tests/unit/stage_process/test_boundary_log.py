"""The boundary log against a model of it: a dictionary from positions to rows."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from edgepp.stage_process.boundary_log import BoundaryLog
from edgepp.stage_process.sequence_state import Key

WIDTH = 4
SEQUENCES = st.tuples(st.integers(1, 2), st.integers(1, 3))


class LogMachine(RuleBasedStateMachine):
    """Frames, copies, cancellations and inheritance in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.log = BoundaryLog()
        self.rows: dict[Key, list[float]] = {}
        self.next = 0.0

    @rule(key=SEQUENCES, position=st.integers(0, 600), count=st.integers(1, 300))
    def record(self, key: Key, position: int, count: int) -> None:
        held = self.rows.get(key, [])
        new = [self.next + i for i in range(count)]
        self.next += count
        self.log.record(key, position, np.repeat(np.array(new, np.float32)[:, None], WIDTH, axis=1))
        if position <= len(held):
            self.rows[key] = [*held[:position], *new]
        else:
            self.rows.pop(key, None)

    @rule(source=SEQUENCES, key=SEQUENCES, length=st.integers(1, 400))
    def fork(self, source: Key, key: Key, length: int) -> None:
        if source == key:
            return
        self.log.free(key)
        self.rows.pop(key, None)
        self.log.fork(source, key, length)
        if length <= len(self.rows.get(source, [])):
            self.rows[key] = self.rows[source][:length]

    @rule(key=SEQUENCES)
    def free(self, key: Key) -> None:
        self.log.free(key)
        self.rows.pop(key, None)

    @rule()
    def inherit(self) -> None:
        self.log.forget(2)
        self.log.inherit(1, 2)
        self.rows = {(2, sequence): rows for (epoch, sequence), rows in self.rows.items() if epoch == 1}

    @invariant()
    def agrees(self) -> None:
        for epoch in (1, 2):
            assert self.log.lengths(epoch) == {key[1]: len(rows) for key, rows in self.rows.items() if key[0] == epoch}
        for key, rows in self.rows.items():
            logged = self.log.rows(key, 0, len(rows))
            assert logged is not None
            assert (logged == np.array(rows, np.float32)[:, None]).all()
            assert self.log.rows(key, 0, len(rows) + 1) is None
        assert self.log.nbytes <= sum(2 * max(256, len(rows)) * WIDTH * 4 for rows in self.rows.values())


TestBoundaryLog = LogMachine.TestCase


def test_another_dtype_begins_again() -> None:
    log = BoundaryLog()
    log.record((1, 1), 0, np.ones((3, WIDTH), np.float32))
    log.record((1, 1), 3, np.ones((1, WIDTH), np.float16))
    assert log.lengths(1) == {}
    assert log.nbytes == 0
