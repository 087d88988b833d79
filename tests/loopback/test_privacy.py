"""Nothing reports home: ONNX Runtime's official builds upload usage events unless told not to before import."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from edgepp.model.random import TINY, make_checkpoint

_LOAD = """
import sys
from pathlib import Path
from edgepp.backend import choose
from edgepp.backend.base import BackendOptions
from edgepp.model.checkpoint import Checkpoint
checkpoint = Checkpoint.open(Path(sys.argv[1]))
choose("onnx", checkpoint).load_ends(checkpoint, BackendOptions())
"""


def test_a_backend_leaves_no_telemetry_store_behind(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "tiny", TINY)
    home = tmp_path / "home"
    home.mkdir()
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "ORT_"))} | {"HOME": str(home)}
    subprocess.run([sys.executable, "-c", _LOAD, str(model)], env=environment, check=True)
    assert [path for path in home.rglob("*") if "Microsoft" in str(path) or "onnxruntime" in str(path)] == []
