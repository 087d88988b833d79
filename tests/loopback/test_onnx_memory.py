"""Memory of a stage process with the ONNX backend, measured in a child process."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from edgepp.layer_range import LayerRange
from edgepp.model.random_checkpoint import TINY, make_checkpoint
from edgepp.model.weights.checkpoint import Checkpoint

MIB = 2**20
MEASURE = """
import sys, threading
from pathlib import Path
from edgepp.backend.base import BackendOptions
from edgepp.backend.onnx.backend import OnnxBackend
from edgepp.layer_range import LayerRange
from edgepp.model.weights.checkpoint import Checkpoint

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

def sample():
    while not loaded.wait(0.002):
        seen.append(anonymous())

checkpoint = Checkpoint.open(Path(sys.argv[1]))
before, seen, loaded = anonymous(), [0], threading.Event()
sampler = threading.Thread(target=sample)
sampler.start()
stage = OnnxBackend().load_stage(checkpoint, LayerRange(0, checkpoint.num_layers), BackendOptions())
loaded.set()
sampler.join()
print(max(seen) - before, anonymous() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("bits", "group_size"), [(4, 64), (4, 32), (8, 64), (None, None)])
def test_weights_are_held_once_and_nearly_once_while_loading(
    bits: int | None, group_size: int | None, tmp_path: Path
) -> None:
    shape = replace(
        TINY, layers=2, heads=16, kv_heads=8, head_size=64, hidden=1024, ffn=8192, bits=bits, group_size=group_size,
        dtype="float16",
    )  # fmt: skip
    path = make_checkpoint(tmp_path, shape)
    stored = Checkpoint.open(path).layer_bytes(LayerRange(0, 2))
    measured = subprocess.run([sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, check=True)
    loading, loaded = map(int, measured.stdout.split())
    assert loading < 2 * stored + 20 * MIB
    assert loaded < 1.5 * stored + 20 * MIB
