"""`edgepp use MODEL`: the cluster changes its model while it runs, with progress."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.live import Live
from rich.text import Text

from edgepp.errors import EdgeppError
from edgepp.ui.peers import connect
from edgepp.ui.screen import Screen, say, say_json

_LOOK_S = 0.5


def use(model: str, *, as_json: bool) -> None:
    """Change the model of the cluster that this machine coordinates, and wait until it answers.

    Raises:
        UsageError: another machine coordinates the cluster, or another change is under way.
        EdgeppError: the model cannot be had or does not fit; the cluster goes on with the former one.
    """
    began_s = time.monotonic()
    with connect() as client, _Note(as_json=as_json) as note:
        begun = client.call("use", {"model": _absolute(model)})
        while (change := (state := client.call("status"))["change"])["state"] not in ("ready", "failed"):
            note.show(change, state)
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


class _Note:
    """How far the change is: one line that is updated on a terminal, else a line per step; or lines of JSON."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        console = Screen(stderr=True)
        self._live = (
            Live(console=console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False)
            if console.is_terminal and not as_json
            else None
        )
        self._shown: Any = None

    def show(self, change: Mapping[str, Any], state: Mapping[str, Any]) -> None:
        """Show the change as the cluster's ``state`` has it."""
        if change["state"] == "opening":  # a name that is unknown is refused in this state
            return
        loading = (state["loading"] or {}) if change["state"] == "loading" else {}
        progress, eta_s = loading.get("progress", change["progress"]), loading.get("eta_seconds")
        if self._as_json:
            told = {"event": change["state"], "model": change["model"], "progress": progress, "eta_s": eta_s}
            if told != self._shown:
                say_json(told)
            self._shown = told
            return
        line = _line(change, state, progress, eta_s)
        if self._live is not None:
            self._live.update(Text(line, style="dim"), refresh=True)
        elif change["state"] != self._shown:
            say(line, err=True)
            self._shown = change["state"]

    def __enter__(self) -> _Note:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()


def _line(change: Mapping[str, Any], state: Mapping[str, Any], progress: float, eta_s: float | None) -> str:
    model, step = change["model"], change["state"]
    if step == "waiting":
        return f"waiting until {state['answers']['under_way']} answers under way have ended"
    eta = "" if eta_s is None else f", about {eta_s:.0f} s"
    return f"{step} {model}: {100 * progress:.0f} %{eta}"
