"""A stage process that rehearses the handling of a frame while it waits: the variant ``rehearsed`` of ``hop_trace``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any


def stage_command(_module: str, *arguments: str) -> list[str]:
    """Command of such a stage process."""
    return [sys.executable, "-P", str(Path(__file__).resolve()), *arguments]


def main() -> None:
    """Run the stage process."""
    from bench.toolkit.hop_variants import Rehearsal, rehearse_in
    from edgepp.stage_process import compute_thread
    from edgepp.stage_process.main import main as stage_main

    made: list[Rehearsal] = []
    run = compute_thread.ComputeThread.run

    def running(self: compute_thread.ComputeThread) -> None:
        made.append(Rehearsal(self.data.socket.context))
        try:
            run(self)
        finally:
            made.pop().close()

    rehearse_in(compute_thread, made)
    changed: Any = compute_thread.ComputeThread
    changed.run = running
    stage_main()


if __name__ == "__main__":
    main()
