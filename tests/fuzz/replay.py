"""Run a target over inputs from files, without atheris: ``python -m tests.fuzz.replay TARGET FILE …``."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path


def main() -> None:
    """Give each file to the target; an invariant that breaks is a traceback."""
    name, *files = sys.argv[1:]
    with tempfile.TemporaryDirectory(prefix="edgepp-fuzz-") as home:
        os.environ["EDGEPP_HOME"] = home
        from tests.fuzz.targets import TARGETS

        for file in files:
            TARGETS[name].check(Path(file).read_bytes())


if __name__ == "__main__":
    main()
