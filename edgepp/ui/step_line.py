"""Progress of a change of the cluster: a line that is updated on a terminal, else a line per step; or lines of JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.live import Live
from rich.text import Text

from edgepp.ui.screen import Screen, say, say_json


class StepLine:
    """The present step of a change, on standard error; as JSON on standard output. Use it in a ``with`` statement."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        console = Screen(stderr=True)
        self._live = (
            Live(console=console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False)
            if console.is_terminal and not as_json
            else None
        )
        self._shown: Any = None

    def show(self, step: str, line: str, facts: Mapping[str, Any]) -> None:
        """Show ``line``, or with JSON the ``step`` as event with its ``facts``."""
        if self._as_json:
            told = {"event": step, **facts}
            if told != self._shown:
                say_json(told)
            self._shown = told
        elif self._live is not None:
            self._live.update(Text(line, style="dim"), refresh=True)
        elif step != self._shown:
            say(line, err=True)
            self._shown = step

    def hide(self) -> None:
        """Take the line away, so that other output can follow, until the next step is shown."""
        if self._live is not None:
            self._live.update(Text(""), refresh=True)

    def __enter__(self) -> StepLine:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
