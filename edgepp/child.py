"""Command lines of Python child processes, which import nothing from the current folder.

``python -m`` puts the current folder first on the import path: a ``psutil.py`` beside a downloaded model would run.
"""

from __future__ import annotations

import os
import sys
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
