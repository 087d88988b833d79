"""What a node runs of its cluster's model, or why nothing: read from what the coordinator says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgepp.errors import UsageError
from edgepp.events import AssignmentChanged
from edgepp.layers import LayerRange
from edgepp.printable import one_line


def read_assignment(view: Mapping[str, Any], node: str) -> AssignmentChanged | None:
    """The assignment of ``node`` in the coordinator's view; None while it is undecided, or where it is not said."""
    members = view.get("members")
    mine = [m for m in members if isinstance(m, dict) and m.get("node") == node] if isinstance(members, list) else []
    if not mine or not isinstance(mine[0].get("layers"), list):
        return None
    try:
        layers = tuple(LayerRange(int(start), int(stop)) for start, stop in mine[0]["layers"])
    except (TypeError, ValueError, UsageError):
        return None
    reason = "" if layers else one_line(str(mine[0].get("reason", "")), 500)
    return AssignmentChanged(one_line(str(view.get("model", "")), 200), layers, reason) if layers or reason else None
