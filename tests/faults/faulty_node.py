"""The `edgepp` command with stage processes of ``faulty_stage``.

Its coordinator waits longer for nodes that it expects: on a busy machine they come back late, and what is seen then is
the patience of the coordinator and not that nodes keep their weights.
"""

from __future__ import annotations

import sys
from pathlib import Path

from edgepp.cli import main
from edgepp.coordinator import plan_timing
from edgepp.node import stage_handle

_STAGE = Path(__file__).with_name("faulty_stage.py")


def _command(_module: str, *arguments: str) -> list[str]:
    return [sys.executable, str(_STAGE), *arguments]


if __name__ == "__main__":
    stage_handle.python_command = _command
    plan_timing.START_WAIT_S = plan_timing.RETURN_WAIT_S = 60.0
    main()
