"""Look-up of the nodes and tokens that people call by a name. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Protocol, TypeVar

MIN_DIGITS = 4
"""First digits of an id that may stand for it."""


class Identified(Protocol):
    """An object with the id of a node or token."""

    @property
    def node(self) -> str:
        """The id."""


N = TypeVar("N", bound=Identified)


def called(name: str, nodes: Iterable[N], names_of: Callable[[N], Collection[str | None]]) -> list[N]:
    """The ``nodes`` with the id ``name``; without one, those with this name, or with an id that begins with it.

    An id counts before a name, since nodes choose their names.
    """
    listed = list(nodes)
    begins_id = len(name) >= MIN_DIGITS
    return [one for one in listed if name == one.node] or [
        one for one in listed if name and (name in names_of(one) or (begins_id and one.node.startswith(name)))
    ]
