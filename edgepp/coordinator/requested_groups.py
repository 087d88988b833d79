"""Members that ask to share the layers of a stage (`edgepp join --tensor T`), and the groups that they make. Pure.

Members make a group that ask for the same layers and the same number of machines, in the order in which they came.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgepp.cluster.membership import Member
from edgepp.errors import PlanError
from edgepp.layer_range import LayerRange
from edgepp.placement.groups import make_group
from edgepp.placement.values import Links, PlacementRequest, StageHost

_Wish = tuple[LayerRange | None, int]
"""Pinned layers, and the number of machines that are to share each of them."""


class RequestedGroups:
    """The groups that members ask for."""

    def __init__(self, request: PlacementRequest, sums: Links) -> None:
        self._request = request
        self._sums = sums
        self._came: dict[str, _Wish] = {}
        """What each present member asks for, in the order in which they came."""

    def groups(
        self, members: Sequence[Member], hosts: Mapping[str, StageHost]
    ) -> tuple[list[tuple[tuple[str, ...], StageHost]], dict[str, str]]:
        """The complete groups with their node ids, and why the other members run no layers, by node id.

        ``hosts`` has what each member offers, by node id.
        """
        wishes = {member.node: (hosts[member.node].pinned, member.facts.tensor) for member in members}
        self._came = {node: wish for node, wish in self._came.items() if wishes.get(node) == wish} | wishes
        found: list[tuple[tuple[str, ...], StageHost]] = []
        waiting: dict[str, str] = {}
        for wish in dict.fromkeys(self._came.values()):
            nodes = [node for node, one in self._came.items() if one == wish]
            count = wish[1]
            for start in range(0, len(nodes), count):
                team = tuple(nodes[start : start + count])
                if len(team) < count:
                    names = " and ".join(str(hosts[node]) for node in team)
                    waiting |= dict.fromkeys(team, _missing(names, wish, count - len(team)))
                    continue
                try:
                    found.append((team, make_group(self._request, [hosts[node] for node in team], self._sums)))
                except PlanError as error:
                    waiting |= dict.fromkeys(team, f"{error}; {error.hint}" if error.hint else str(error))
        return found, waiting


def _missing(names: str, wish: _Wish, count: int) -> str:
    layers, tensor = wish
    command = f"edgepp join{f' --layers {layers}' if layers is not None else ''} --tensor {tensor}"
    others = "another machine" if count == 1 else f"{count} other machines"
    return f"{names} wait{'' if ' and ' in names else 's'} for {others} to share each layer: run `{command}` there"
