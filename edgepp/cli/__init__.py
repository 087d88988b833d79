"""Entry point of the ``edgepp`` command, also for ``bench``: streams, signals, errors and exit status.

Further modules are imported after streams and signals are set up, so Ctrl-C during imports ends the command at once;
``__main__`` has seen to that before.
"""

from __future__ import annotations

import atexit
import io
import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from edgepp.child_process import trusted_path
from edgepp.cli.signals import INTERRUPTED, Terminated, leave_at_once, on_signals, repeat_lost, unwind
from edgepp.output_streams import Output, error_stream, release_outputs

if TYPE_CHECKING:
    from edgepp.cli.options import CommandGroup
    from edgepp.errors import EdgeppError

BROKEN_PIPE = 141
"""Exit status after the reader of standard output has closed the pipe: 128 + SIGPIPE, as in shells."""
_stdout: list[Output] = []
_reported_output_loss: list[bool] = []


def main() -> None:
    """Entry point of the ``edgepp`` command."""
    sys.path[:] = trusted_path()
    run_to_end(_load, _show_on_terminal)


def run_to_end(load: Callable[[], Callable[[], int]], show: Callable[[EdgeppError], None]) -> None:
    """Run a program and end this process; any error becomes one sentence, a next step and an exit status.

    ``load`` imports and returns the program; the program returns its exit status. ``show`` prints an error. The exit
    status is 0, 1 for a failure, 2 for an invalid command line, 130 after Ctrl-C, 143 after SIGTERM, 129 after the
    terminal was closed (SIGHUP), and 141 if standard output is a pipe that was closed.
    """
    _open_streams()
    on_signals(leave_at_once)
    status = 1
    try:
        run = load()
        on_signals(unwind)
        threading.excepthook = partial(_thread_failed, show)
        sys.unraisablehook = repeat_lost
        status = run()
    except BaseException as error:  # noqa: BLE001 - outermost level of the process
        status = _status_of(error, show)
    on_signals(leave_at_once)
    _leave(_flushed(status))


def _load() -> Callable[[], int]:
    from edgepp.cli.commands import cli

    return lambda: _run(cli)


def _run(cli: CommandGroup) -> int:
    """Run the command of the arguments; every exception is left to ``run_to_end``, unlike in click's own ``main``."""
    from click import exceptions, shell_completion

    if instruction := os.environ.get("_EDGEPP_COMPLETE"):
        return shell_completion.shell_complete(cli, {}, "edgepp", "_EDGEPP_COMPLETE", instruction)
    try:
        with cli.make_context("edgepp", sys.argv[1:]) as context:
            cli.invoke(context)
    except exceptions.Exit as done:
        return done.exit_code
    return 0


def _open_streams() -> None:
    """Open closed standard streams, so that no socket gets their descriptors; write unencodable characters as ?."""
    for descriptor, mode in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):  # writing to 1 must fail
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, mode)
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - stays open
    encoding = getattr(sys.stdout, "encoding", "utf-8")
    _stdout[:] = [Output(1)]
    sys.stdout = io.TextIOWrapper(io.BufferedWriter(_stdout[0]), encoding, "replace", line_buffering=os.isatty(1))
    sys.stderr = error_stream()


def _status_of(error: BaseException, show: Callable[[EdgeppError], None]) -> int:
    """Print an error and return the exit status."""
    import click

    from edgepp.printable import one_line, printable

    try:
        if isinstance(error, click.ClickException):
            shown = io.StringIO()
            error.show(shown)  # its message may name a file that somebody else has named
            sys.stderr.write(printable(shown.getvalue().replace(error.message, one_line(error.message))))
            error_as_json(type(error).__name__, error.format_message(), "")
            return error.exit_code
        if isinstance(error, Terminated):
            return error.exit_status
        if isinstance(error, (KeyboardInterrupt, click.Abort)):
            sys.stderr.write("\ninterrupted\n" if sys.stderr.isatty() else "interrupted\n")
            return INTERRUPTED
        if isinstance(error, OSError) and (lost := _output_lost()) is not None:
            return lost
        if isinstance(error, SystemExit):
            return error.code if isinstance(error.code, int) else int(error.code is not None)
        from edgepp.error_boundary import exit_status, explained
        from edgepp.ui.errors import next_step

        known = explained(error)
        show(known)
        error_as_json(type(known).__name__, str(known), next_step(known))
        return exit_status(known)
    except OSError:  # standard error is lost too
        return 1


def _show_on_terminal(error: EdgeppError) -> None:
    from edgepp.ui.errors import show_error

    show_error(error)


def error_as_json(kind: str, message: str, hint: str) -> None:
    """Print an error as the last line of standard output, if the command was given ``--json``."""
    if "--json" in sys.argv[1:]:
        import json

        sys.stdout.write(json.dumps({"event": "error", "error": kind, "message": message, "hint": hint}) + "\n")


def _output_lost() -> int | None:
    """Exit status after the loss of standard output, or None; a loss is reported unless the reader closed a pipe."""
    with suppress(OSError):
        sys.stdout.flush()
    lost = _stdout[0].lost
    if lost is None:
        return None
    _silence(1)
    if isinstance(lost, BrokenPipeError):
        return BROKEN_PIPE
    if not _reported_output_loss:
        _reported_output_loss.append(True)
        sys.stderr.write(f"error: standard output cannot be written: {lost.strerror}\n")
        sys.stderr.write("  try: free some space, or redirect the output to another file\n")
    return 1


def _silence(*descriptors: int) -> None:
    """Discard the buffered output of ``descriptors``, which Python would fail to write at exit."""
    null = os.open(os.devnull, os.O_WRONLY)
    for descriptor in descriptors:
        os.dup2(null, descriptor)
    os.close(null)


def _flushed(status: int) -> int:
    try:
        release_outputs()
        lost = _output_lost()
        sys.stderr.flush()
    except OSError:
        _silence(2)
        return status or 1
    return lost if lost is not None and not status else status


def _thread_failed(show: Callable[[EdgeppError], None], failure: threading.ExceptHookArgs) -> None:
    """Print the exception of a thread that nothing waits for: a part of the command has ended with the thread."""
    from edgepp.error_boundary import explained
    from edgepp.ui.errors import next_step

    if failure.exc_value is not None and not isinstance(failure.exc_value, SystemExit):
        known = explained(failure.exc_value)
        show(known)
        error_as_json(type(known).__name__, str(known), next_step(known))


def _leave(status: int) -> None:
    """End the process; at once if threads still run, since one may be inside a library call that cannot be stopped."""
    if status and threading.active_count() > 1:
        import psutil

        for child in psutil.Process().children(recursive=True):
            child.kill()
        os._exit(status)
    if status == INTERRUPTED:  # after Ctrl-C inside code that a library evaluates, Python would still die of the signal
        atexit._run_exitfuncs()
        os._exit(status)
    if status:
        sys.exit(status)
