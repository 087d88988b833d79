"""The processor time that other programs use."""

from __future__ import annotations

import pytest

from edgepp.host_system import other_programs
from edgepp.host_system.other_programs import OtherPrograms


def test_the_cores_that_other_programs_use_are_told_from_this_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    busy = iter([100.0, 109.0])
    own = iter([1.0, 4.0])
    now = iter([50.0, 54.0])

    class Times(tuple[float, ...]):
        idle = 7.0

    class Process:
        user, system = 0.0, 0.0

        def children(self, *, recursive: bool) -> list[Process]:
            assert recursive
            return []

        def cpu_times(self) -> Process:
            self.user = next(own)
            return self

    monkeypatch.setattr(other_programs.psutil, "cpu_times", lambda: Times((next(busy), 7.0)))
    monkeypatch.setattr(other_programs.psutil, "Process", Process)
    monkeypatch.setattr(other_programs.time, "monotonic", lambda: next(now))
    assert OtherPrograms().cores() == 1.5
