"""Signals that end the ``edgepp`` command, and the exit status of each."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
INTERRUPTED = 128 + signal.SIGINT
"""Exit status after Ctrl-C."""
_REPEAT_S = 0.01


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP in a command that cleans up after either as after Ctrl-C."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.exit_status = 128 + number


def on_signals(act: Callable[[int, FrameType | None], None]) -> None:
    """Let SIGINT, SIGTERM and SIGHUP call ``act``; a signal that the parent ignores, as `nohup` does, stays ignored."""
    for number in ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            plain = number == signal.SIGINT and act is unwind  # asyncio replaces this SIGINT handler only
            signal.signal(number, signal.default_int_handler if plain else act)


def leave_at_once(number: int, _frame: FrameType | None) -> None:
    """End the process with exit status 128 + ``number``, without cleaning up."""
    os._exit(128 + number)


def unwind(number: int, _frame: FrameType | None) -> None:
    """End the command with exit status 128 + ``number``; ``with`` and ``finally`` clean up."""
    raise SystemExit(128 + number)


def stop_on_terminate() -> None:
    """Let SIGTERM and SIGHUP stop a command as Ctrl-C does, so that a farewell or a partial report is still printed."""

    def stop(number: int, _frame: FrameType | None) -> None:
        raise Terminated(number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, stop)


def repeat_lost(lost: sys.UnraisableHookArgs) -> None:
    """``sys.unraisablehook`` of a command: repeat a signal whose exception Python could not raise, and show the rest.

    A handler runs wherever the main thread is, also in a finaliser or a callback of a weak reference, where Python only
    prints what is raised. A thread repeats the signal, since this function itself is such a place.
    """
    match lost.exc_value:
        case Terminated() as error:
            number = error.exit_status - 128
        case KeyboardInterrupt():
            number = signal.SIGINT
        case SystemExit(code=int(code)) if code - 128 in ENDING:
            number = code - 128
        case _:
            sys.__unraisablehook__(lost)
            return
    with suppress(RuntimeError):  # Python is ending anyway
        threading.Timer(_REPEAT_S, os.kill, (os.getpid(), number)).start()
