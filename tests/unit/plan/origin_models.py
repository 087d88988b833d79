"""The models and chips of the figures that edgepp started from."""

from __future__ import annotations

import pytest

from edgepp.model.catalogue.cards import Shape, find
from edgepp.placement.values import ModelSize
from edgepp.plan import hardware, roofline
from edgepp.plan.chip_slices import read_slices

near = pytest.approx

LLAMA_70B = find("llama-3.3-70b-bf16")
LLAMA_8B = find("llama-3.1-8b-bf16")
LLAMA_405B = Shape(
    layers=126, heads=128, kv_heads=8, head_size=128, hidden=16384, ffn=53248, vocabulary=128256, tied=False,
    context=131072,
)  # fmt: skip
WEIGHTS = 70e9
"""The source counts in round billions; a test shows how little that leaves out."""
V5E, V5P, H100 = (hardware.find(name) for name in ("tpu-v5e", "tpu-v5p", "h100"))
KV_INT8 = roofline.kv_token_bytes(LLAMA_70B, 1)
MIB = 2**20
SIZE = ModelSize.of(LLAMA_70B)
SLICES_V5E = read_slices(V5E)


def mbit(bytes_per_s: float) -> float:
    return 8 * bytes_per_s / 1e6


# The smallest slice

SLICES = {
    # dtype: item bytes, weights GB, KV kB a token, min chips, chips, GB left, sequences, QPS/chip, doubled QPS/chip
    "bf16": (2, 140, 324, 8.75, 16, 116, 43, 0.27, 0.44),
    "int8": (1, 70, 162, 4.38, 8, 58, 43, 0.55, 0.90),
    "int4": (0.5, 35, 81, 2.81, 4, 29, 43, 1.11, 1.80),
}
STEP_S = 19e-3
ORIGIN_KV = 162e3
"""Its KV bytes a token in int8: neither 160 KiB nor 163.84 kB, but 1.1 % from it."""
