"""A stage process that does what the file ``fault`` in its node's ``EDGEPP_HOME`` says before a step; else a usual one.

    stop N    stop the process, as SIGSTOP does, at the first step that goes beyond position N
    hold N    there, hold the interpreter for ever, so that no thread of the process runs, and its sockets stay open
    wedge N   there, compute for ever, while the control thread answers
    die N     end at every step that goes beyond position N

All but ``die`` happen once, so that the next process is sound.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from pathlib import Path

from edgepp.model.weights.checkpoint import Array
from edgepp.stage_process import main
from edgepp.stage_process.frames import Frame
from edgepp.stage_process.model_runner import ModelRunner
from edgepp.stage_process.step_outcome import StepOutcome
from edgepp.wire.messages.data import Forward

_FAULT = Path(os.environ["EDGEPP_HOME"]) / "fault"
_LONG_S = 600
_run = ModelRunner.run


def _faulty_run(runner: ModelRunner, frame: Frame, hidden: Array) -> StepOutcome:
    if _FAULT.exists():
        _misbehave(_FAULT.read_text(), frame)
    return _run(runner, frame, hidden)


def _misbehave(fault: str, frame: Frame) -> None:
    kind, position = fault.split()
    end = frame.position + frame.rows if isinstance(frame, Forward) else 1 + max(frame.positions)
    if end <= int(position):
        return
    if kind == "die":
        with _FAULT.with_name("deaths").open("a") as deaths:
            deaths.write(f"{end}\n")
        os._exit(3)
    _FAULT.unlink()
    match kind:
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "hold":
            ctypes.PyDLL(None).sleep(_LONG_S)  # unlike CDLL, keeps the lock of the interpreter
        case "wedge":
            time.sleep(_LONG_S)


if __name__ == "__main__":
    ModelRunner.run = _faulty_run  # type: ignore[method-assign]
    main.main()
