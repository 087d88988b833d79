"""Use of a coordinator's own cores: whether one step more than the number of stages travels in the ring."""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence

import numpy as np

from edgepp.backend.base import EmbeddingAndHead
from edgepp.cluster.discovery.network_interfaces import usable_addresses
from edgepp.engine.ring import StageInfo
from edgepp.wire.address import Address

_REST_S = 0.001
"""Seconds of a step at the coordinator beside the head: to receive it, draw, embed and send (bench/LOG.md)."""
_COLD_HOP_S = 0.00025
"""Seconds that a hop between steps takes beyond what was measured while nothing computed (bench/LOG.md)."""
_REPEATS = 3


def spare_step_pays(stages: Sequence[StageInfo], head_s: float) -> bool:
    """Whether one more step than there are ``stages`` brings more tokens per second; the head takes ``head_s``.

    With a step per stage, S stages take S * (a + b * rows) + o seconds for a round: ``a`` to read a stage's weights,
    ``b`` per row, and ``o`` outside the stages. With the same rows in S + 1 steps no stage is idle meanwhile, but each
    reads its weights once more. So the step pays where ``o`` is longer than ``a``.
    """
    hops_s = sum(stage.hop_s for stage in stages) + (len(stages) + 1) * _COLD_HOP_S
    outside_s = hops_s + head_s + _REST_S
    return outside_s > max(stage.decode_s - stage.prefill_s for stage in stages)


def seconds_of_head(ends: EmbeddingAndHead, width: int) -> float:
    """Shortest measured time, in seconds, of ``ends`` for the logits of one hidden state (1, ``width``)."""
    hidden = np.zeros((1, width), np.float32)
    took_s = []
    for _ in range(_REPEATS):
        began_s = time.perf_counter()
        ends.logits(hidden)
        took_s.append(time.perf_counter() - began_s)
    return min(took_s)


def is_here(stage: StageInfo) -> bool:
    """Whether a stage runs on this machine, by the address of its control socket."""
    address = Address.parse(stage.address)
    host = address.host.partition("%")[0]
    return address.is_loopback or host == platform.node() or host in usable_addresses()
