"""The `edgepp` command with stage processes of ``faulty_stage``."""

from __future__ import annotations

import sys
from pathlib import Path

from edgepp.cli import main
from edgepp.node import stage_handle

_STAGE = Path(__file__).with_name("faulty_stage.py")


def _command(_module: str, *arguments: str) -> list[str]:
    return [sys.executable, str(_STAGE), *arguments]


if __name__ == "__main__":
    stage_handle.python_command = _command
    main()
