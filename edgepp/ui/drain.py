"""`edgepp drain NODE`: other nodes take the node's layers, with progress; `--undo` lets the node run layers again."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from edgepp.errors import EdgeppError
from edgepp.layer_range import LayerRange
from edgepp.ui.peers import connect
from edgepp.ui.screen import say, say_json
from edgepp.ui.step_line import StepLine

_LOOK_S = 0.5
"""Pause between two looks at the state of the cluster."""


def drain(node: str, *, undo: bool, as_json: bool) -> None:
    """Drain a node of the cluster that this machine coordinates, and wait until the other nodes answer without it.

    ``node`` is a name or an id. ``undo`` lets the node run layers again instead.

    Raises:
        UsageError: another machine coordinates the cluster.
        EdgeppError: no node has this name or id, the other nodes cannot hold its layers, or the drain was undone
            meanwhile.
    """
    with connect() as client, StepLine(as_json=as_json) as step:
        told = client.call("drain", {"node": node, "undo": undo})
        while not undo and not _is_done(told, state := client.call("status")):
            loading = state["loading"] or {"node": "", "progress": 0.0}
            layers = ", ".join(str(LayerRange(*one)) for one in told["layers"])
            where = f": {loading['node']} {100 * loading['progress']:.0f} %" if loading["node"] else ""
            why = f" ({state['reason']})" if state["reason"] else ""
            facts = {"node": told["name"], "progress": loading["progress"], "reason": state["reason"]}
            step.show("moving", f"moving layers {layers} of {told['name']} to other nodes{where}{why}", facts)
            time.sleep(_LOOK_S)
    if as_json:
        event = "undone" if undo else "drained"
        say_json({"event": event, "node": told["node"], "name": told["name"], "draining": told["draining"]})
    elif undo:
        say(f"{told['name']} may run layers again")
    else:
        say(f"{told['name']} runs no layers; `edgepp drain --undo {told['name']}` lets it run some again")


def _is_done(told: Mapping[str, Any], state: Mapping[str, Any]) -> bool:
    """Whether the node has no layers, and the cluster answers without it if it had some.

    Raises:
        EdgeppError: the node is not drained any more.
    """
    node = next((one for one in state["nodes"] if one["node"] == told["node"] and one["state"] != "gone"), None)
    if node is not None and not node["draining"]:
        raise EdgeppError(f"{told['name']} is not drained any more", "it was started again, or the drain was undone")
    has_layers = node is not None and bool(node["layers"])
    return not has_layers and (not told["layers"] or (state["state"] == "ready" and state["moved"]))
