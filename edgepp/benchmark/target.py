"""Description of a cluster or a pipeline for a report.

Reports are shown to others, so the description has no address and no key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgepp.benchmark.report import MeasuredTarget, StageFacts
from edgepp.engine.ring import StageInfo
from edgepp.errors import EdgeppError
from edgepp.layer_range import LayerRange

_OF_A_NODE = (
    "name", "roles", "state", "backend", "device", "threads", "memory_bytes", "stream_bytes_per_s",
    "flops_per_s", "rtt_s", "version",
)  # fmt: skip


def shown(model: str) -> str:
    """Name of a model; for a folder, the last part of the path."""
    if not model.startswith(("/", ".", "~")):
        return model
    name = Path(model).name
    return name if name.strip(".~") else Path(model).expanduser().resolve().name  # "." and "~" are no names


def local(model: str, stages: Sequence[StageInfo]) -> MeasuredTarget:
    """Target of a pipeline on this machine."""
    facts = (
        StageFacts(str(s.layers), s.node, s.backend, s.device, s.hop_s or None, s.bytes_per_s or None) for s in stages
    )
    return MeasuredTarget("local", shown(model), tuple(facts))


def cluster(status: Mapping[str, Any]) -> MeasuredTarget:
    """Target of a live cluster, from the output of `edgepp status --json`.

    Raises:
        EdgeppError: the cluster is not ready.
    """
    if status["state"] != "ready":
        why = f": {status['reason']}" if status["reason"] else ""
        raise EdgeppError(f"the cluster is {status['state']}{why}", "`edgepp status --watch` shows when it is ready")
    stages = (
        StageFacts(
            str(LayerRange(*stage["layers"])),
            stage["node"],
            stage["backend"],
            stage["device"],
            stage.get("hop_s"),
            stage.get("link_bytes_per_s"),
        )
        for stage in status["stages"]
    )
    nodes = ({name: node[name] for name in _OF_A_NODE} for node in status["nodes"])
    return MeasuredTarget("cluster", shown(str(status["model"])), tuple(stages), tuple(nodes))
