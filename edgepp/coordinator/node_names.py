"""Which node, or token, people mean by a name. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Protocol, TypeVar

MIN_DIGITS = 4
"""First digits of an id that may stand for it."""


class Identified(Protocol):
    """What has the id of a node or token."""

    @property
    def node(self) -> str:
        """The id."""


N = TypeVar("N", bound=Identified)


def called(name: str, nodes: Iterable[N], names_of: Callable[[N], Collection[str | None]]) -> list[N]:
    """Those of ``nodes`` that have this id, else those with this name or an id that begins so.

    An id counts before a name, since nodes choose their names.
    """
    listed = list(nodes)
    begins_id = len(name) >= MIN_DIGITS
    return [one for one in listed if name == one.node] or [
        one for one in listed if name and (name in names_of(one) or (begins_id and one.node.startswith(name)))
    ]
