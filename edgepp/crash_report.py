"""Report files about faults of edgepp itself, without personal data.

A report has versions, the platform, and the lines of code that led to the fault. Exception messages may quote prompts,
paths and addresses, so a report keeps only those of exception types about code itself, and cleans them.
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
_MAX_CHAINED = 8
"""Exceptions of one chain (``__cause__``, ``__context__``) that a report shows."""
_MAX_REPORTS = 8
"""Report files of one process."""
_MAX_FRAMES, _FIRST_FRAMES = 60, 20
_written: dict[tuple[object, ...], str] = {}


def write_report(error: BaseException) -> str | None:
    """Write a report to the temporary folder, readable by this user only, and return its path; None if that fails.

    A fault that occurs several times at the same place has one report.
    """
    last = traceback.extract_tb(error.__traceback__)[-1:]
    kind = (type(error), *((frame.filename, frame.lineno) for frame in last))
    if kind in _written:
        return _written[kind]
    if len(_written) >= _MAX_REPORTS:
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
    """The text of a report: versions, the platform, and each chained exception with its frames, oldest first."""
    libraries = ", ".join(f"{name} {_version(name)}" for name in _LIBRARIES)
    lines = [
        f"edgepp {_version('edgepp')}, Python {platform.python_version()}",
        f"{platform.system()} {platform.release()} {platform.machine()}",
        libraries,
    ]
    for number, chained in enumerate(reversed(list(_chain(error)))):
        lines += ["", "while that exception was handled:"] if number else [""]
        lines += _frames(chained.__traceback__)
        lines.append(_described(chained))
    return "\n".join(lines) + "\n"


def _chain(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    for _ in range(_MAX_CHAINED):
        if link is None:
            return
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


def _frames(trace: TracebackType | None) -> Iterator[str]:
    frames = traceback.extract_tb(trace)
    shown = frames if len(frames) <= _MAX_FRAMES else [*frames[:_FIRST_FRAMES], *frames[_FIRST_FRAMES - _MAX_FRAMES :]]
    for frame in shown:
        place = _place(frame.filename)
        yield f"  {place}:{frame.lineno} in {frame.name}" if place else "  a file outside edgepp and its libraries"
        if place and frame.line:
            yield f"    {frame.line}"


def _described(error: BaseException) -> str:
    name = type(error).__name__
    if not isinstance(error, _ABOUT_CODE):
        return f"{name} (message left out, since it may quote a prompt)"
    return f"{name}: {_cleaned(str(error))}"


def _cleaned(message: str) -> str:
    """``message`` with paths, addresses, keys and this command's arguments replaced by an ellipsis."""
    for word in {word for argument in sys.argv[1:] for word in argument.split() if len(word) > 3}:
        message = message.replace(word, "…")
    return _PERSONAL.sub("…", message)[:300]


def _place(file: str) -> str:
    """The path of a file relative to the folder of its package; empty for a file of the user."""
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
