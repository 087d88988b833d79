"""A line on standard error with the reason why an answer has not begun, such as missing nodes, and the time waited."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from rich.live import Live
from rich.text import Text

from edgepp.coordinator.live_answer import PIPELINE_WAIT_S
from edgepp.ui.screen import Screen, say

if TYPE_CHECKING:
    from edgepp.python_api import Answer

_CHECK_INTERVAL_S = 0.25
_PRINT_INTERVAL_S = 10.0
"""Minimum time between two printed reasons if standard error is not a terminal."""


class WaitingNote:
    """A line with the reason why an answer has not begun: updated on a terminal, else printed at a new reason."""

    def __init__(self) -> None:
        self._console = Screen(stderr=True)
        self._live: Live | None = None
        self._began_s: float | None = None
        self._printed = ("", 0.0)
        self.beside_text = False
        """Whether the cursor stands behind a part of the answer, which a line on a terminal would erase."""

    def show(self, reason: str) -> None:
        """Show the reason and the time waited so far; show nothing if ``reason`` is empty."""
        if not reason:
            self.clear()
            return
        now_s = time.monotonic()
        if self._began_s is None:
            self._began_s = now_s
        waited_s = now_s - self._began_s
        text = f"waiting ({waited_s:.0f} of at most {PIPELINE_WAIT_S:.0f} s): {reason}"
        if not self._console.is_terminal:
            before, before_s = self._printed
            if reason != before and (not before or now_s - before_s >= _PRINT_INTERVAL_S):
                self._printed = (reason, now_s)
                say(text, err=True)
            return
        if self.beside_text:
            return
        if self._live is None:
            self._live = Live(
                console=self._console,
                auto_refresh=False,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._live.start()
        self._live.update(Text(f"{text} (Ctrl-C to stop)", style="dim"), refresh=True)

    def clear(self) -> None:
        """Remove the line."""
        live, self._live = self._live, None
        if live is not None:
            live.stop()


@asynccontextmanager
async def shown_waiting(answers: Sequence[Answer]) -> AsyncIterator[WaitingNote]:
    """Show why the answers wait, while the block runs; clear the note before printing anything else."""
    note = WaitingNote()

    async def watch() -> None:
        while True:
            note.show(next((answer.waiting for answer in answers if answer.waiting), ""))
            await asyncio.sleep(_CHECK_INTERVAL_S)

    watching = asyncio.create_task(watch())
    try:
        yield note
    finally:
        watching.cancel()
        note.clear()
