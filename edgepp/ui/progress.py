"""Progress bars of downloads and loads, on standard error so that output can be piped."""

from __future__ import annotations

import time
from types import TracebackType

from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

from edgepp.ui.screen import Screen

_SHOW_AFTER_S = 1.0
"""Time after the first progress before a bar is shown."""


class ByteProgress:
    """One bar per download or load, after the first second.

    Silent if standard error is not a terminal, or with ``quiet``.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        console = Screen(stderr=True, quiet=quiet)
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            DownloadColumn(),
            TransferSpeedColumn(),
            console=console,
            disable=quiet or not console.is_terminal,
            transient=True,
        )
        self._tasks: dict[str, TaskID] = {}
        self._began_s: float | None = None

    def __call__(self, done: int, total: int, what: str) -> None:
        """Show that ``done`` of ``total`` bytes of ``what`` are downloaded or loaded."""
        now_s = time.monotonic()
        if self._began_s is None:
            self._began_s = now_s
        elif now_s - self._began_s > _SHOW_AFTER_S:
            self._bars.start()
        if what not in self._tasks:
            self._tasks[what] = self._bars.add_task(what, total=total)
        self._bars.update(self._tasks[what], completed=done, total=total)

    def __enter__(self) -> ByteProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()


def megabytes(count: int) -> str:
    """A number of bytes as text, in MB or GB (decimal)."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
