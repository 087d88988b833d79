"""Any exception as an ``EdgeppError``: one sentence and a next step, for the edge of a command, a process or a thread.

What the machine or its user did (a full disk, a closed stream, bytes that are no text, too little memory) is named
as such. What nothing expected is a fault of edgepp's own: a report file is written, and the hint names it.
"""

from __future__ import annotations

import errno
import logging
import os

from edgepp.crash_report import write_report
from edgepp.errors import EdgeppError, InternalError, UsageError
from edgepp.printable import one_line

log = logging.getLogger("edgepp")

_ELSEWHERE = "or name another place with EDGEPP_HOME, EDGEPP_CACHE or TMPDIR"
_NOT_THIS_USER = f"let this user read and write it, {_ELSEWHERE}"
_OTHER_KIND = f"move it away or name another: a folder may stand where a file belongs, {_ELSEWHERE}"
_DESCRIPTORS = "raise the limit of open files with `ulimit -n 8192`"
_MEMORY = "close other programs, or use less: a smaller model, fewer layers (--memory), a shorter --context"
_NETWORK = "check the network and the address; `edgepp doctor` says more"
_HINTS = {
    errno.ENOSPC: f"free some space, {_ELSEWHERE}",
    errno.EDQUOT: f"free some space, {_ELSEWHERE}",
    errno.EROFS: f"it can only be read there: mount it for writing, {_ELSEWHERE}",
    errno.EACCES: _NOT_THIS_USER,
    errno.EPERM: _NOT_THIS_USER,
    errno.ENOENT: "check its name and that it still exists",
    errno.ENOTDIR: _OTHER_KIND,
    errno.EISDIR: _OTHER_KIND,
    errno.EEXIST: _OTHER_KIND,
    errno.ENXIO: _OTHER_KIND,
    errno.ENODEV: _OTHER_KIND,
    errno.ELOOP: "a symbolic link leads back to itself: name the file itself",
    errno.ENAMETOOLONG: "use a shorter name",
    errno.EMFILE: _DESCRIPTORS,
    errno.ENFILE: _DESCRIPTORS,
    errno.ENOMEM: _MEMORY,
    errno.EAGAIN: "this user runs too many processes or threads: end some, or raise `ulimit -u`",
    errno.EIO: "the disk or its connection may be failing: check it, or use another",
    errno.ESTALE: "the network drive was remounted: start again",
    errno.EADDRINUSE: "another program listens there: choose another port",
    errno.EADDRNOTAVAIL: "this machine does not have that address: `edgepp doctor` lists those it has",
    **dict.fromkeys(
        (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ECONNREFUSED, errno.ECONNRESET, errno.ETIMEDOUT, errno.ENETDOWN),
        _NETWORK,
    ),
}


def explained(error: BaseException) -> EdgeppError:
    """``error`` itself where it is an ``EdgeppError``, else what it means to whoever runs edgepp."""
    if isinstance(error, EdgeppError):
        return error
    if isinstance(error, MemoryError):
        return EdgeppError("memory ran out", _MEMORY)
    if isinstance(error, RecursionError):
        return EdgeppError("a file or a message is nested too deeply to be read", "use one that is nested less deeply")
    if isinstance(error, UnicodeError):
        return _no_text(error)
    if isinstance(error, EOFError):
        return EdgeppError("the input ended too early", "check what is piped in, or run it in a terminal")
    if isinstance(error, ImportError):
        return EdgeppError(
            f"a library that edgepp needs cannot be loaded: {one_line(str(error), 200)}",
            "install edgepp again with its libraries: `python -m pip install --force-reinstall edgepp`",
        )
    number = getattr(error, "errno", None)
    if isinstance(error, OSError) or number in _HINTS:  # ZeroMQ's error is no OSError
        return _refused(error, number)
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
    """Status with which a command ends: 2 for one that makes no sense, else 1."""
    return 2 if isinstance(error, UsageError) else 1


def _no_text(error: UnicodeError) -> EdgeppError:
    hint = "save it as UTF-8 (`iconv -f latin1 -t utf-8`), or set the terminal to UTF-8"
    if isinstance(error, UnicodeDecodeError):
        where = f"byte {error.object[error.start]:#04x} at {error.start} is no {error.encoding}"
        return UsageError(f"what was given is no text: {where}", hint)
    if isinstance(error, UnicodeEncodeError):
        character = f"U+{ord(error.object[error.start]):04X}"
        return UsageError(f"the text holds {character}, which cannot be written as {error.encoding}", hint)
    return UsageError(f"what was given is no text: {one_line(str(error), 200)}", hint)


def _refused(error: BaseException, number: int | None) -> EdgeppError:
    lock = getattr(error, "lock_file", None)
    if lock is not None:  # of filelock's Timeout
        return EdgeppError(f"another edgepp holds {one_line(os.fspath(lock))}", "wait for it, or end it, and try again")
    names = [os.fsdecode(name) for name in (getattr(error, "filename", None),) if isinstance(name, (str, bytes))]
    reason = (getattr(error, "strerror", None) or str(error) or type(error).__name__).removeprefix("[Errno ")
    what = f"{names[0]}: {reason}" if names else f"the system refused: {reason}"
    return EdgeppError(one_line(what, 400), _HINTS.get(number or 0, "check the file, disk or connection that it names"))


def _fault(error: BaseException) -> InternalError:
    report = write_report(error)
    said = one_line(f"{type(error).__name__}: {error}", 300).removesuffix(": ")
    if report is None:
        return InternalError(f"a fault of edgepp itself: {said}", "please report this, and what led to it")
    return InternalError(
        f"a fault of edgepp itself: {said}",
        f"please report this with {report}, which holds no prompt, name, address or key",
    )
