"""Standard output and standard error that need not wait for whoever reads them.

A terminal that is held (Ctrl-S, a pager, an SSH session whose client sleeps) takes no bytes. A command that answers
others meanwhile may not stop at what it prints: see ``Output.hold``.
"""

from __future__ import annotations

import atexit
import io
import select
import sys
import threading
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_MAX_HELD_BYTES = 1 << 20
"""Bytes that wait for the reader; more are lost."""
_END_WAIT_S = 1.0
"""How long the end waits for a reader that takes nothing."""


class Output(io.FileIO):
    """A standard stream for writing, which keeps its first failure."""

    def __init__(self, descriptor: int, *, required: bool = True) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self.required = required
        """Whether a write fails where the stream cannot be written; if not, what is written there is lost."""
        self.lost: OSError | None = None
        """Why nothing more can be written; None while the stream works."""
        self._changed = threading.Condition()
        self._held: deque[bytes] = deque()
        self._held_bytes = 0
        self._over = False
        self._thread: threading.Thread | None = None

    def hold(self) -> None:
        """From now on, hold what the reader does not take, and lose what is too much, rather than wait for the reader.

        A failure is raised by the next write.
        """
        if self._thread is None:
            self._thread = threading.Thread(target=self._pass_on, name=f"output-{self.fileno()}", daemon=True)
            self._thread.start()

    def write(self, data: ReadableBuffer, /) -> int:
        """Write like any file, and keep the first failure in ``lost``.

        Raises:
            OSError: the stream is required, and cannot be written.
        """
        if self._thread is None:
            try:
                return self._written(data)
            except OSError as error:
                self.lost = self.lost or error
                if self.required:
                    raise
                return memoryview(data).nbytes
        chunk = bytes(data)
        with self._changed:
            if self.lost is not None and self.required:
                raise self.lost
            if self.lost is None and self._held_bytes + len(chunk) <= _MAX_HELD_BYTES:
                self._held.append(chunk)
                self._held_bytes += len(chunk)
                self._changed.notify_all()
        return len(chunk)

    def release(self) -> None:
        """Wait until the reader has taken what is held, and not much longer for one that takes nothing."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        with self._changed:
            self._over = True
            self._changed.notify_all()
            before = -1
            while self._held_bytes and self._held_bytes != before and self.lost is None:
                before = self._held_bytes
                self._changed.wait_for(lambda before=before: self._held_bytes != before, _END_WAIT_S)  # type: ignore[misc]
            taken = not self._held_bytes or self.lost is not None
        if taken:
            thread.join()

    def _written(self, data: ReadableBuffer) -> int:
        """Write some bytes and return their number, also where another program has made the stream non-blocking."""
        while (count := super().write(data)) is None:
            select.select((), (self.fileno(),), ())
        return count

    def _pass_on(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._held or self._over)
                if not self._held:
                    return
                chunk = self._held.popleft()
            try:
                while chunk:
                    count = self._written(chunk)
                    chunk = chunk[count:]
                    with self._changed:
                        self._held_bytes -= count
                        self._changed.notify_all()
            except OSError as error:
                with self._changed:
                    self.lost = error
                    self._held.clear()
                    self._held_bytes = 0
                    self._changed.notify_all()


def error_stream() -> io.TextIOWrapper:
    """Standard error as an ``Output``, in the encoding that it has: what it cannot take is lost, and ends no answer."""
    encoding = getattr(sys.stderr, "encoding", "utf-8")
    raw = Output(2, required=False)
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, "replace", line_buffering=True)


def hold_errors() -> None:
    """Let no log line of this child process wait for a reader that takes nothing, until the process ends."""
    sys.stderr = error_stream()
    hold_outputs()
    atexit.register(release_outputs)


def hold_outputs() -> None:
    """Let no print of this process wait for a reader that takes nothing; see ``Output.hold``."""
    for stream in _outputs():
        stream.hold()


def require_no_output() -> None:
    """Let no print of this process fail from now on: what cannot be written is lost."""
    for stream in _outputs():
        stream.required = False


def release_outputs() -> None:
    """Let the end of this process wait for its readers, though not for one that takes nothing."""
    for stream in _outputs():
        stream.release()


def _outputs() -> list[Output]:
    found = [getattr(getattr(stream, "buffer", None), "raw", None) for stream in (sys.stdout, sys.stderr)]
    return [raw for raw in found if isinstance(raw, Output)]
