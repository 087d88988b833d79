"""Keeping this machine awake while there is work, by a command of the system that holds a lock against sleep.

macOS: ``caffeinate``; Linux with systemd: ``systemd-inhibit``. The lock ends with the command, and the command ends
with this process, however it ends. A machine without such a command, or whose user may hold no lock, may sleep.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

from edgepp.host_system import systemd

log = logging.getLogger("edgepp.sleep")

SleepLock: TypeAlias = Literal["held", "released", "missing", "off"]
"""State of a machine's lock: ``missing`` where the system gives none, ``off`` where sleep was allowed."""
LINGER_S = 5.0
"""How long a lock stays after the last work, so that it does not change hands between two questions."""
RETRY_S = 60.0
"""Time until a lock that the system refused is asked for again."""


def lock_commands() -> list[list[str]]:
    """Command lines that hold a lock against sleep until their input ends or this process does, the strongest first.

    None where the system has no such command. A user without a session at the machine may often lock idle sleep alone.
    """
    if sys.platform == "darwin":
        program = shutil.which("caffeinate")
        return [[program, "-i", "-w", str(os.getpid())]] if program else []
    program = shutil.which("systemd-inhibit") if systemd.is_booted() else None
    if program is None:
        return []
    about = ["--who=edgepp", "--why=computes answers", "--mode=block", "cat"]
    return [[program, "--what=sleep:idle", *about], [program, "--what=idle", *about]]


class SleepInhibitor:
    """One lock against sleep, which is held while there is work. Belongs to one thread; any thread may read it."""

    def __init__(
        self,
        *,
        allow_sleep: bool = False,
        commands: Callable[[], Sequence[Sequence[str]]] = lock_commands,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """``allow_sleep`` never takes the lock. ``commands`` hold it, and ``now_s`` is a monotonic clock in seconds."""
        self._allow_sleep = allow_sleep
        self._commands = commands
        self._now_s = now_s
        self._worked_s = self._retry_s = -math.inf
        self._untried: list[Sequence[str]] = []
        """Weaker commands than the one that runs or was refused last."""
        self._process: subprocess.Popen[bytes] | None = None
        self._missing = False

    @property
    def state(self) -> SleepLock:
        """Whether the lock is held, as far as is known."""
        if self._allow_sleep:
            return "off"
        if self._process is not None:
            return "held"
        return "missing" if self._missing else "released"

    def update(self, *, working: bool) -> None:
        """Take or release the lock by whether there is work now. Call it several times per second; never raises."""
        if self._allow_sleep:
            return
        now_s = self._now_s()
        if working:
            self._worked_s = now_s
        if now_s - self._worked_s >= LINGER_S:
            self.release()
            return
        if self._process is not None and self._process.poll() is not None:
            self._on_refusal(self._process, now_s)
        if self._process is None and now_s >= self._retry_s:
            self._take(now_s)

    def release(self) -> None:
        """Release the lock at once."""
        process, self._process = self._process, None
        self._worked_s, self._untried = -math.inf, []
        if process is not None:
            _end(process)

    def _take(self, now_s: float) -> None:
        """Start the strongest command that has not just been refused."""
        self._untried = self._untried or list(self._commands())
        while self._untried and self._process is None:
            command = self._untried.pop(0)
            try:
                self._process = subprocess.Popen(  # noqa: S603 - a command of the system
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    start_new_session=True,  # Ctrl-C of a terminal is meant for edgepp
                )
            except OSError as error:
                log.info("%s cannot be started: %s", command[0], error.strerror)
        self._note(now_s)

    def _on_refusal(self, process: subprocess.Popen[bytes], now_s: float) -> None:
        self._process = None
        said = process.stderr.read(1000).decode(errors="replace").strip() if process.stderr else ""
        log.info("the system keeps no lock against sleep: %s", said or f"status {process.returncode}")
        _end(process)
        if not self._untried:
            self._note(now_s)

    def _note(self, now_s: float) -> None:
        """Note whether a command runs; without one, wait before all are tried again."""
        self._missing = self._process is None
        if self._missing:
            self._retry_s = now_s + RETRY_S


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a command and close its pipes; what it runs for the time of its lock ends with its input."""
    if process.poll() is None:
        process.kill()
    for pipe in (process.stdin, process.stderr):
        if pipe is not None:
            pipe.close()
    process.wait()
