"""Report files: what is known of a fault of edgepp itself, without anything personal.

A report names versions, the platform, and the lines of code that led to the fault. Messages of exceptions may quote
prompts, paths and addresses: only those of exceptions that speak of code itself are kept, and cleaned.
"""

from __future__ import annotations

import os
import platform
import re
import sys
import tempfile
import traceback
from collections.abc import Iterator
from importlib import metadata
from types import TracebackType

from edgepp.child_process import installed_folders

_ABOUT_CODE = (AttributeError, NameError, TypeError, ZeroDivisionError, IndexError, OverflowError, AssertionError)
_LIBRARIES = ("mlx", "mlx-lm", "onnxruntime", "onnx", "numpy", "transformers", "llguidance", "pyzmq", "msgpack")
_PERSONAL = re.compile(
    r"""(?x)
    [\w.+-]*@[\w.-]+                # a mail address
    | (?:[~/\\][^\s'"]*){2,}        # a path
    | \b\d{1,3}(?:\.\d{1,3}){3}\b   # an address
    | (?:[0-9a-fA-F]*:){2,}[0-9a-fA-F]*
    | \b[0-9A-Za-z+/=_-]{20,}       # a key or a token
    """
)
_MOST_LINKS = 8
_MOST_REPORTS = 8
_written: dict[tuple[object, ...], str] = {}


def write_report(error: BaseException) -> str | None:
    """Path of a file in the temporary folder that only this user may read; None where none can be written.

    A fault that comes again, such as that of a message which is sent again and again, has one report.
    """
    last = traceback.extract_tb(error.__traceback__)[-1:]
    kind = (type(error), *((frame.filename, frame.lineno) for frame in last))
    if kind in _written:
        return _written[kind]
    if len(_written) >= _MOST_REPORTS:
        return None
    try:
        handle, path = tempfile.mkstemp(prefix="edgepp-report-", suffix=".txt")
        with open(handle, "w", encoding="utf-8", errors="replace") as file:  # noqa: PTH123 - a descriptor
            file.write(report_text(error))
    except OSError:
        return None
    _written[kind] = path
    return path


def report_text(error: BaseException) -> str:
    """The report: versions, the platform, and each exception of the chain with its frames, the oldest first."""
    libraries = ", ".join(f"{name} {_version(name)}" for name in _LIBRARIES)
    lines = [
        f"edgepp {_version('edgepp')}, Python {platform.python_version()}",
        f"{platform.system()} {platform.release()} {platform.machine()}",
        libraries,
    ]
    for number, link in enumerate(reversed(list(_chain(error)))):
        lines += ["", "then, while that was handled:"] if number else [""]
        lines += _frames(link.__traceback__)
        lines.append(_named(link))
    return "\n".join(lines) + "\n"


def _chain(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    for _ in range(_MOST_LINKS):
        if link is None:
            return
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


def _frames(trace: TracebackType | None) -> Iterator[str]:
    frames = traceback.extract_tb(trace)
    shown = frames if len(frames) <= 60 else [*frames[:20], *frames[-40:]]
    for frame in shown:
        place = _place(frame.filename)
        yield f"  {place}:{frame.lineno} in {frame.name}" if place else "  a file that is not edgepp's"
        if place and frame.line:
            yield f"    {frame.line}"


def _named(error: BaseException) -> str:
    name = type(error).__name__
    if not isinstance(error, _ABOUT_CODE):
        return f"{name} (its message may quote what was asked, so it is left out)"
    return f"{name}: {_cleaned(str(error))}"


def _cleaned(message: str) -> str:
    """``message`` without what looks like a path, an address, a key, or one of this command's own arguments."""
    for word in {word for argument in sys.argv[1:] for word in argument.split() if len(word) > 3}:
        message = message.replace(word, "…")
    return _PERSONAL.sub("…", message)[:300]


def _place(file: str) -> str:
    """A file by its package, without the folders that lead there; nothing is told of a user's own script."""
    package = os.path.dirname(os.path.realpath(__file__))  # noqa: PTH120
    if file.startswith(package + os.sep):
        return "edgepp" + file[len(package) :]
    for folder in sorted(set(map(os.path.realpath, installed_folders()[1:])), key=len, reverse=True):
        if file.startswith(folder + os.sep):
            return file[len(folder) + 1 :]
    return file if file.startswith("<frozen ") else ""


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "-"
