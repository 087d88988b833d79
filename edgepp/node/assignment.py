"""The assignment of a node, read from the coordinator's view of the cluster."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgepp.errors import UsageError
from edgepp.events import AssignmentChanged
from edgepp.layer_range import LayerRange
from edgepp.printable import one_line


def read_assignment(view: Mapping[str, Any], node: str) -> AssignmentChanged | None:
    """Assignment of the node id ``node`` in ``view``; None where the view has none, or a malformed one."""
    members = view.get("members")
    own = [m for m in members if isinstance(m, dict) and m.get("node") == node] if isinstance(members, list) else []
    if not own or not isinstance(own[0].get("layers"), list):
        return None
    try:
        layers = tuple(LayerRange(int(start), int(stop)) for start, stop in own[0]["layers"])
    except (TypeError, ValueError, UsageError):
        return None
    reason = "" if layers else one_line(str(own[0].get("reason", "")), 500)
    return AssignmentChanged(one_line(str(view.get("model", "")), 200), layers, reason) if layers or reason else None
