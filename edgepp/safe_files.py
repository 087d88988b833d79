"""Opening a file where anything may lie, and replacing one whole.

Only regular files are opened: a named pipe, a device or a socket is never waited for. Symbolic links are followed.
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
    """Something else lies where a file should be; ``strerror`` says what."""


class TooLarge(OSError):  # noqa: N818
    """A file has more bytes than such a file can need."""


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading.

    Raises:
        OSError: there is none, it is something else (``NotRegular``), or it may not be read.
    """
    require_regular(path, path.stat().st_mode)
    return os.fdopen(open_descriptor(path, os.O_RDONLY), "rb")


def open_descriptor(path: Path, flags: int) -> int:
    """Open a regular file with the ``flags`` of ``os.open``; one that this makes is its owner's alone.

    Raises:
        OSError: it cannot be opened, or is something else (``NotRegular``).
    """
    descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
    try:
        require_regular(path, os.fstat(descriptor).st_mode)  # of what was opened, whatever the name means by now
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def require_regular(path: Path, mode: int) -> None:
    """Refuse the ``st_mode`` of anything but a regular file.

    Raises:
        NotRegular: it is of another kind.
    """
    if not stat.S_ISREG(mode):
        kind = next((name for test, name in _KINDS if test(mode)), "no file")
        raise NotRegular(errno.EINVAL, f"it is {kind} where a file should be", str(path))


def read_whole(stream: BinaryIO, most: int) -> bytes:
    """All of an open file of at most ``most`` bytes.

    Raises:
        OSError: it has more (``TooLarge``), or cannot be read.
    """
    size = os.fstat(stream.fileno()).st_size
    data = stream.read(min(size, most) + 1)  # reading allocates what is asked for
    if len(data) > most:
        raise TooLarge(errno.EFBIG, f"it has more than {most >> 20} MiB, which such a file cannot need", stream.name)
    return data


def write_atomically(path: Path, data: bytes) -> None:
    """Give ``path`` new contents at one instant: a reader, or a crash, sees the old or the new.

    The file is its owner's alone.

    Raises:
        OSError: it cannot be written; the old one stands.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # made with mode 0600
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
