"""Conversion of any exception to an ``EdgeppError``, at the edge of a command, process or thread.

A condition of the machine or its user (a full disk, a closed stream, bytes that are not text, too little memory) gets
a sentence and a next step. Any other exception is a fault of edgepp: a report file is written, and the hint names it.
"""

from __future__ import annotations

import errno
import logging
import os

from edgepp.crash_report import write_report
from edgepp.errors import EdgeppError, InternalError, UsageError
from edgepp.printable import one_line

log = logging.getLogger("edgepp")

_ELSEWHERE = "or set EDGEPP_HOME, EDGEPP_CACHE or TMPDIR to another folder"
_NOT_THIS_USER = f"give this user permission to read and write it, {_ELSEWHERE}"
_OTHER_KIND = (
    f"move it away, since a file is needed where there is a folder, or a folder where there is a file; {_ELSEWHERE}"
)
_DESCRIPTORS = "raise the limit of open files with `ulimit -n 8192`"
_MEMORY = "close other programs, or use a smaller model, fewer layers (--memory) or a shorter --context"
_NETWORK = "check the network and the address with `edgepp doctor`"
_HINTS = {
    errno.ENOSPC: f"free some space, {_ELSEWHERE}",
    errno.EDQUOT: f"free some space, {_ELSEWHERE}",
    errno.EROFS: f"the file system is read-only: mount it for writing, {_ELSEWHERE}",
    errno.EACCES: _NOT_THIS_USER,
    errno.EPERM: _NOT_THIS_USER,
    errno.ENOENT: "check the name, and that the file or folder exists",
    errno.ENOTDIR: _OTHER_KIND,
    errno.EISDIR: _OTHER_KIND,
    errno.EEXIST: _OTHER_KIND,
    errno.ENXIO: _OTHER_KIND,
    errno.ENODEV: _OTHER_KIND,
    errno.ELOOP: "a symbolic link points to itself: name the file directly",
    errno.ENAMETOOLONG: "use a shorter name",
    errno.EMFILE: _DESCRIPTORS,
    errno.ENFILE: _DESCRIPTORS,
    errno.ENOMEM: _MEMORY,
    errno.EAGAIN: "this user runs too many processes or threads: end some, or raise the limit with `ulimit -u`",
    errno.EIO: "the disk or its connection may be failing: check the disk, or use another one",
    errno.ESTALE: "the network drive was remounted: start the command again",
    errno.EADDRINUSE: "another program uses this port: choose another one",
    errno.EADDRNOTAVAIL: "this machine does not have that address: `edgepp doctor` lists its addresses",
    **dict.fromkeys(
        (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ECONNREFUSED, errno.ECONNRESET, errno.ETIMEDOUT, errno.ENETDOWN),
        _NETWORK,
    ),
}


def explained(error: BaseException) -> EdgeppError:
    """``error`` itself if it is an ``EdgeppError``, else an ``EdgeppError`` that describes it to the user."""
    if isinstance(error, EdgeppError):
        return error
    if isinstance(error, MemoryError):
        return EdgeppError("memory ran out", _MEMORY)
    if isinstance(error, RecursionError):
        return EdgeppError("a file or message is nested too deeply to be read", "use one with fewer levels")
    if isinstance(error, UnicodeError):
        return _not_text(error)
    if isinstance(error, EOFError):
        return EdgeppError("the input ended too early", "check the piped input, or run the command in a terminal")
    if isinstance(error, ImportError):
        return EdgeppError(
            f"a library that edgepp needs cannot be loaded: {one_line(str(error), 200)}",
            "install edgepp again with its libraries: `python -m pip install --force-reinstall edgepp`",
        )
    number = getattr(error, "errno", None)
    if isinstance(error, OSError) or number in _HINTS:  # ZeroMQ's error class is not an OSError
        return _os_error(error, number)
    return _fault(error)


def failure(error: BaseException, what: str) -> EdgeppError:
    """``error`` itself where it is an ``EdgeppError``; else, logged, an error that says that ``what`` failed, and why.

    For a boundary that catches ``BaseException``: libraries written in Rust raise what is no ``Exception``, and only
    the main thread is sent a ``KeyboardInterrupt``.
    """
    if isinstance(error, EdgeppError):
        return error
    log.error("%s failed", what, exc_info=error)
    found = explained(error)
    return EdgeppError(f"{what} failed: {found}", found.hint)


def exit_status(error: EdgeppError) -> int:
    """Exit status of a command: 2 for a ``UsageError``, else 1."""
    return 2 if isinstance(error, UsageError) else 1


def _not_text(error: UnicodeError) -> EdgeppError:
    hint = "convert it to UTF-8 (`iconv -f latin1 -t utf-8`), or set the terminal to UTF-8"
    if isinstance(error, UnicodeDecodeError):
        where = f"byte {error.object[error.start]:#04x} at {error.start} is not {error.encoding}"
        return UsageError(f"the input is not text: {where}", hint)
    if isinstance(error, UnicodeEncodeError):
        character = f"U+{ord(error.object[error.start]):04X}"
        return UsageError(f"the text contains {character}, which {error.encoding} cannot represent", hint)
    return UsageError(f"the input is not text: {one_line(str(error), 200)}", hint)


def _os_error(error: BaseException, number: int | None) -> EdgeppError:
    lock = getattr(error, "lock_file", None)
    if lock is not None:  # filelock.Timeout
        return EdgeppError(
            f"another edgepp process holds {one_line(os.fspath(lock))}", "wait until it ends, or end it, and try again"
        )
    names = [os.fsdecode(name) for name in (getattr(error, "filename", None),) if isinstance(name, (str, bytes))]
    reason = (getattr(error, "strerror", None) or str(error) or type(error).__name__).removeprefix("[Errno ")
    what = f"{names[0]}: {reason}" if names else f"the operating system refused: {reason}"
    return EdgeppError(
        one_line(what, 400), _HINTS.get(number or 0, "check the file, disk or connection that the message names")
    )


def _fault(error: BaseException) -> InternalError:
    report = write_report(error)
    description = one_line(f"{type(error).__name__}: {error}", 300).removesuffix(": ")
    if report is None:
        return InternalError(
            f"a fault of edgepp itself: {description}", "please report this message, and what led to it"
        )
    return InternalError(
        f"a fault of edgepp itself: {description}",
        f"please report this with {report}, a file without prompts, names, addresses and keys",
    )
