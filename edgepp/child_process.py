"""Command lines of isolated Python child processes, and limits for such processes.

``python -m`` puts the current folder first on the import path, so a ``psutil.py`` next to a downloaded model would run.
"""

from __future__ import annotations

import math
import os
import resource
import signal
import site
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

_SOME_FOLDER = "import os\ntry: os.getcwd()\nexcept OSError: os.chdir('/')"
"""Code that leaves a current folder which was removed: libraries ask for its name, and fail."""
_ROOT = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))


def python_command(module: str, *arguments: str) -> list[str]:
    """Command line that runs ``module`` as ``__main__`` in an isolated interpreter (``-I``).

    The child imports from the same folders as this process, except the current folder; environment variables such as
    ``PYTHONPATH`` add none, and a current folder that was removed does no harm. It does not find PyTorch, which nothing
    here needs, and which transformers imports where it is installed: that takes seconds, and more memory than some
    children may use. Ctrl-C during the imports ends the child without a traceback, even before the first one where it
    was started inside of ``interrupts_held``; afterwards the module handles Ctrl-C.
    """
    ends = "s.getsignal(2) is s.default_int_handler and s.signal(2, s.SIG_DFL)"
    quiet = f"import _signal as s; {ends}; s.pthread_sigmask(s.SIG_UNBLOCK, [2])"  # `signal` itself takes milliseconds
    paths = f"import runpy, sys; sys.path[:] = {trusted_path()!r}; sys.modules['torch'] = None"
    run = f"runpy.run_module({module!r}, None, '__main__', True)"
    return [sys.executable, "-I", "-c", f"{quiet}; {paths}\n{_SOME_FOLDER}\n{run}", *arguments]


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Have a child that is started inside of the block get Ctrl-C once it can end without a traceback.

    The child inherits that this thread blocks SIGINT; the command line of ``python_command`` ends that. In this process
    Ctrl-C is handled after the block, or by another thread.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def read_configuration() -> str:
    """The first line of standard input, by which a parent configures its child; empty if the parent has ended already.

    From now on Ctrl-C and the end of a terminal, which reach the whole process group, are left to the parent.
    """
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    return sys.stdin.readline()


def trusted_path() -> list[str]:
    """Entries of ``sys.path`` without the current folder, unless that is where Python or this package is installed."""
    try:
        here = os.path.realpath(os.getcwd())
    except FileNotFoundError:  # the folder was removed
        here = ""
    installed = {os.path.realpath(entry) for entry in installed_folders()}
    kept = [entry for entry in sys.path if entry and (os.path.realpath(entry) != here or here in installed)]
    return kept if _ROOT in map(os.path.realpath, kept) else [*kept, _ROOT]


def installed_folders() -> list[str]:
    """The folder that contains this package first, then those of the standard library and of installed packages."""
    library = os.path.dirname(os.__file__)
    user = [site.getusersitepackages()] if site.ENABLE_USER_SITE else []
    return [_ROOT, library, os.path.join(library, "lib-dynload"), *site.getsitepackages(), *user]


def limit_memory(max_bytes: int) -> None:
    """Limit the address space of this process (Linux only: macOS has no such limit), and disable core files."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        max_bytes = max_bytes if hard == resource.RLIM_INFINITY else min(max_bytes, hard)
        resource.setrlimit(resource.RLIMIT_AS, (max_bytes, hard))


def limit_cpu(seconds: int) -> None:
    """End this process by SIGXCPU after ``seconds`` (up to one more) of further processor time.

    On a busy machine that takes longer by the clock. A later call replaces the limit.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = math.ceil(time.process_time()) + seconds
    resource.setrlimit(resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))
