"""A toy model, and machines to predict its speed on."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from edgepp.layer_range import split_evenly
from edgepp.placement.values import LinkSpeed, ModelSize
from edgepp.plan.machines import Efficiency, Machine, Model, Stage

near = pytest.approx
FREE = Efficiency(hop_s=0.0, sample_s=0.0)
SIZE = ModelSize(layers=10, hidden=1000, layer_bytes=10**8, ends_bytes=10**8, kv_bytes=10**4, layer_flops=2 * 10**8)
MODEL = Model("toy", SIZE, head_bytes=10**8, head_flops=2 * 10**8, attention_flops=0, context=4096)
FAST = LinkSpeed(0.0, 1e15)
SLOW = LinkSpeed(0.01, 1e6)


def machine(name: str, stream: float = 1e10, flops: float = 1e12, efficiency: Efficiency = FREE) -> Machine:
    return Machine(name, stream, flops, efficiency)


def even(machines: Sequence[Machine]) -> list[Stage]:
    return [Stage(one, layers) for one, layers in zip(machines, split_evenly(10, len(machines)), strict=True)]
