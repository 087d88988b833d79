"""Opening regular files only, and replacing a file atomically.

Opening never blocks on a named pipe, a device or a socket at the path. Symbolic links are followed.
"""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from pathlib import Path
from typing import BinaryIO

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class NotRegular(OSError):  # noqa: N818 - an OSError like those of the system
    """The path is not a regular file; ``strerror`` names its kind."""


class TooLarge(OSError):  # noqa: N818
    """A file is larger than its limit."""


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading.

    Raises:
        OSError: the file does not exist, is not regular (``NotRegular``), or may not be read.
    """
    require_regular(path, path.stat().st_mode)
    return os.fdopen(open_descriptor(path, os.O_RDONLY), "rb")


def open_descriptor(path: Path, flags: int) -> int:
    """Open a regular file with the ``flags`` of ``os.open``; a new file gets mode 0600.

    Raises:
        OSError: the file cannot be opened, or is not regular (``NotRegular``).
    """
    descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
    try:
        require_regular(path, os.fstat(descriptor).st_mode)  # of the opened file: the path may name another one by now
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def require_regular(path: Path, mode: int) -> None:
    """Check that ``mode``, the ``st_mode`` of ``path``, is that of a regular file.

    Raises:
        NotRegular: ``mode`` is of another kind.
    """
    if not stat.S_ISREG(mode):
        kind = next((name for test, name in _KINDS if test(mode)), "not a file")
        raise NotRegular(errno.EINVAL, f"it is {kind} where a file should be", str(path))


def read_whole(stream: BinaryIO, max_bytes: int) -> bytes:
    """The contents of an open file.

    Raises:
        OSError: the file has more than ``max_bytes`` bytes (``TooLarge``), or cannot be read.
    """
    size = os.fstat(stream.fileno()).st_size
    data = stream.read(min(size, max_bytes) + 1)  # read() allocates the requested size
    if len(data) > max_bytes:
        raise TooLarge(errno.EFBIG, f"it is larger than {max_bytes >> 20} MiB, the limit of such a file", stream.name)
    return data


def write_atomically(path: Path, data: bytes) -> None:
    """Replace the contents of ``path``: a reader, or a crash, leaves the old or the new contents, never a mixture.

    The file gets mode 0600.

    Raises:
        OSError: the file cannot be written; the old contents remain.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # with mode 0600
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
