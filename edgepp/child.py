"""Python child processes: command lines that import nothing from the current folder, and limits of what one may use.

``python -m`` puts the current folder first on the import path: a ``psutil.py`` beside a downloaded model would run.
"""

from __future__ import annotations

import math
import os
import resource
import sys
import time
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent
_RUN = (
    "import os, runpy, sys; sys.path[:] = sys.argv.pop(1).split(os.pathsep);"
    " runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
)


def python_command(module: str, *arguments: str) -> list[str]:
    """Command line that runs ``module`` as ``__main__`` in an isolated interpreter (``-I``).

    The child imports from where this process imports, less the current folder; environment variables such as
    ``PYTHONPATH`` add nothing to that.
    """
    return [sys.executable, "-I", "-c", _RUN, os.pathsep.join(trusted_path()), module, *arguments]


def trusted_path() -> list[str]:
    """Entries of ``sys.path`` without the current folder, unless that is the folder that holds this package."""
    here = Path.cwd()
    return [entry for entry in sys.path if entry and (Path(entry) == _ROOT or Path(entry).resolve() != here)]


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
