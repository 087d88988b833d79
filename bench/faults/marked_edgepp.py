"""The `edgepp` command, or with the first argument ``stage`` its stage process, which notes when recovery takes steps.

Each process appends JSON lines (what, at_s in monotonic seconds of the machine) to a file in the folder EDGEPP_MARKS,
if that is set. EDGEPP_WITHOUT=log lets stages work without boundary log.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def mark(what: str) -> None:
    """Note that a step is taken now."""
    folder = os.environ.get("EDGEPP_MARKS")
    if folder:
        with Path(folder, f"{os.getpid()}.marks").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"what": what, "at_s": time.monotonic()}) + "\n")


def marked(owner: Any, name: str, before: str = "", after: str = "") -> None:
    """Note each call of ``owner.name``: its begin as ``before`` and its end as ``after``, where these are given."""
    function: Callable[..., Any] = getattr(owner, name)

    @functools.wraps(function)
    def wrapper(*arguments: Any, **named: Any) -> Any:
        if before:
            mark(before)
        result = function(*arguments, **named)
        if after:
            mark(after)
        return result

    setattr(owner, name, wrapper)


def without(owner: Any, name: str) -> None:
    """Let ``owner.name`` do nothing.

    Raises:
        AttributeError: There is no such function.
    """
    getattr(owner, name)
    setattr(owner, name, lambda *_: None)


def _stage() -> None:
    mark("stage process began")
    from edgepp.stage_process import main
    from edgepp.stage_process.boundary_log import BoundaryLog

    marked(main, "load_layers", "stage imported", "stage has weights")
    marked(main, "measure_speed", after="stage has measured its speed")
    if os.environ.get("EDGEPP_WITHOUT") == "log":
        for name in ("record", "fork"):
            without(BoundaryLog, name)
    main.main()


def points() -> list[tuple[Any, str, str, str]]:
    """What the command notes: owner and name of a function, and what its begin and its end are called."""
    from edgepp.coordinator.pipeline_manager import PipelineManager
    from edgepp.coordinator.rollout import Rollout
    from edgepp.engine import network_ring
    from edgepp.engine.core import EngineCore
    from edgepp.engine.ring_links import RingLinks
    from edgepp.engine.suspension import Suspension
    from edgepp.node.supervisor import StageSupervisor

    return [
        (Suspension, "begin", "suspended", ""),
        (Rollout, "_lost", "end reported", ""),
        (Rollout, "_loaded", "load reported", ""),
        (PipelineManager, "_bring_up", "opening", ""),
        (network_ring, "greet_all", "", "greeted"),
        (RingLinks, "_open", "", "link measured"),
        (RingLinks, "_attach", "", "attached"),
        (RingLinks, "join", "", "joined"),
        (EngineCore, "resume", "", "resumed"),
        (StageSupervisor, "_on_end", "end noticed", ""),
        (StageSupervisor, "_report_loaded", "loaded", ""),
    ]


def _command() -> None:
    from edgepp.cli import main
    from edgepp.node import stage_handle

    for owner, name, before, after in points():
        marked(owner, name, before, after)
    changed: Any = stage_handle
    changed.python_command = stage_command
    main()


def stage_command(_module: str, *arguments: str) -> list[str]:
    """The command of a stage process that does the same."""
    return [sys.executable, "-P", str(Path(__file__)), "stage", *arguments]


if __name__ == "__main__":
    if sys.argv[1:2] == ["stage"]:
        del sys.argv[1]
        _stage()
    else:
        _command()
