"""What the processes of `bench.recovery` note of a recovery."""

from __future__ import annotations

from bench.faults.marked_edgepp import points


def test_every_function_that_is_noted_is_there() -> None:
    missing = [f"{owner.__name__}.{name}" for owner, name, _, _ in points() if not callable(getattr(owner, name, None))]
    assert missing == []
