"""Python child processes: command lines that import nothing from the current folder, and limits of what one may use.

``python -m`` puts the current folder first on the import path: a ``psutil.py`` beside a downloaded model would run.
"""

from __future__ import annotations

import math
import os
import resource
import site
import sys
import time

_ROOT = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))


def python_command(module: str, *arguments: str) -> list[str]:
    """Command line that runs ``module`` as ``__main__`` in an isolated interpreter (``-I``).

    The child imports from where this process imports, less the current folder; environment variables such as
    ``PYTHONPATH`` add nothing to that. A Ctrl-C during its imports ends it without a traceback; then the module
    decides.
    """
    quiet = "import signal; signal.getsignal(2) is signal.default_int_handler and signal.signal(2, signal.SIG_DFL)"
    run = f"import runpy, sys; sys.path[:] = {trusted_path()!r}; runpy.run_module({module!r}, None, '__main__', True)"
    return [sys.executable, "-I", "-c", f"{quiet}; {run}", *arguments]


def trusted_path() -> list[str]:
    """Entries of ``sys.path`` without the current folder, unless that is where Python or this package is installed."""
    try:
        here = os.path.realpath(os.getcwd())
    except FileNotFoundError:  # somebody removed it
        here = ""
    installed = {os.path.realpath(entry) for entry in installed_folders()}
    kept = [entry for entry in sys.path if entry and (os.path.realpath(entry) != here or here in installed)]
    return kept if _ROOT in map(os.path.realpath, kept) else [*kept, _ROOT]


def installed_folders() -> list[str]:
    """The folder that holds this package first, then those of the standard library and of installed packages."""
    library = os.path.dirname(os.__file__)
    user = [site.getusersitepackages()] if site.ENABLE_USER_SITE else []
    return [_ROOT, library, os.path.join(library, "lib-dynload"), *site.getsitepackages(), *user]


def limit_memory(most_bytes: int) -> None:
    """Hold this process to so much memory, and have it leave no core file. macOS has no such limit."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        most_bytes = most_bytes if hard == resource.RLIM_INFINITY else min(most_bytes, hard)
        resource.setrlimit(resource.RLIMIT_AS, (most_bytes, hard))


def limit_cpu(seconds: int) -> None:
    """End this process by SIGXCPU when it has used a processor for ``seconds`` more, or up to one more than that.

    A busy machine may take longer for them. The limit may be set anew for each piece of work.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = math.ceil(time.process_time()) + seconds
    resource.setrlimit(resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))
