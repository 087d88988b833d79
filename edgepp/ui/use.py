"""`edgepp use MODEL`: the cluster changes its model while it runs, with progress."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgepp.errors import EdgeppError
from edgepp.ui.peers import connect
from edgepp.ui.screen import say, say_json
from edgepp.ui.step_line import StepLine

_LOOK_S = 0.5
"""Pause between two looks at the state of the cluster."""


def use(model: str, *, as_json: bool) -> None:
    """Change the model of the cluster that this machine coordinates, and wait until the new model is ready.

    Raises:
        UsageError: another machine coordinates the cluster, or another change is under way.
        EdgeppError: the model cannot be fetched or does not fit; the cluster goes on with the former model.
    """
    began_s = time.monotonic()
    with connect() as client, StepLine(as_json=as_json) as step:
        begun = client.call("use", {"model": _absolute(model)})
        while (change := (state := client.call("status"))["change"])["state"] not in ("ready", "failed"):
            _show(step, change, state)
            time.sleep(_LOOK_S)
    if change["state"] == "failed":
        raise EdgeppError(change["reason"], change["hint"])
    took_s = round(time.monotonic() - began_s, 1)
    changed = bool(begun.get("changes", True))
    if as_json:
        facts = {"model": state["model"], "context": state["context"], "took_s": took_s, "changed": changed}
        say_json({"event": "ready", **facts})
    elif not changed:
        say(f"the cluster runs {state['model']} already")
    else:
        say(f"the cluster runs {state['model']} now, after {took_s:.0f} s")


def _absolute(model: str) -> str:
    """A folder as an absolute path, since the coordinator runs in another folder; other names as they are."""
    path = Path(model).expanduser()
    return str(path.resolve()) if path.is_dir() else model


def _show(step: StepLine, change: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Show the step, progress and estimated time of a change; ``state`` is the state of the cluster."""
    if change["state"] == "opening":  # a name that is unknown is refused in this state
        return
    loading = (state["loading"] or {}) if change["state"] == "loading" else {}
    progress, eta_s = loading.get("progress", change["progress"]), loading.get("eta_seconds")
    facts = {"model": change["model"], "progress": progress, "eta_s": eta_s}
    step.show(change["state"], _line(change, state, progress, eta_s), facts)


def _line(change: Mapping[str, Any], state: Mapping[str, Any], progress: float, eta_s: float | None) -> str:
    model, step = change["model"], change["state"]
    if step == "waiting":
        return f"waiting until {state['answers']['under_way']} answers under way have ended"
    eta = "" if eta_s is None else f", about {eta_s:.0f} s"
    return f"{step} {model}: {100 * progress:.0f} %{eta}"
