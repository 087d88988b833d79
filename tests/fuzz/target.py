"""What a fuzz target is."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from random import Random
from typing import TypeVar

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from edgepp.errors import EdgeppError

T = TypeVar("T")


@dataclass(frozen=True)
class Target:
    """One surface that reads bytes of others."""

    name: str
    check: Callable[[bytes], None]
    """Gives the surface one input; raises where an invariant is broken."""
    seeds: Callable[[], Iterable[bytes]]
    """Inputs to begin with, made of real messages, bodies and texts."""
    mutate: Callable[[bytes, Random], bytes] | None = None
    """Changes an input and keeps its form, which changes of single bytes seldom do; None for an input without form."""


def examples(strategy: st.SearchStrategy[T], number: int) -> list[T]:
    """``number`` values of a strategy, the same in every process."""
    found: list[T] = []

    @settings(
        max_examples=number,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def collect(value: T) -> None:
        found.append(value)

    collect()
    return found


def check_sentence(error: EdgeppError, longest: int = 500) -> None:
    """Fail where what is said of an error is empty, or may grow with the input."""
    assert 0 < len(str(error)) < longest
