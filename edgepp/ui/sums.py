"""Cost of sums over two nodes; nodes that share layers need two sums per layer."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from edgepp.coordinator.client import CoordinatorClient
from edgepp.errors import EdgeppError
from edgepp.ui.finding import Finding

_WAIT_S = 20.0
"""Seconds that `edgepp doctor` waits for measurements."""
_POLL_S = 0.5


def sum_text(pair: Mapping[str, Any]) -> str:
    """The measured cost of sums over a pair of nodes, as the cluster's state has it."""
    names = " and ".join(pair["nodes"])
    if pair["latency_s"] is None:
        return f"sums over {names} could not be measured: {pair['problem']}"
    return (
        f"sums over {names} would take {pair['token_s'] * 1e3:.1f} ms of a token"
        f" ({pair['latency_s'] * 1e6:.0f} µs and {pair['bytes_per_s'] / 1e6:.0f} MB/s each)"
    )


def measured_sums(connection: CoordinatorClient) -> Finding:
    """The finding on the cost of sums over each pair of nodes, after up to 20 s for the pairs not measured yet."""
    try:
        wanted = connection.call("measure")["pairs"]
        until_s = time.monotonic() + _WAIT_S
        while len(found := tried(connection.call("status"))) < wanted and time.monotonic() < until_s:
            time.sleep(_POLL_S)
    except EdgeppError as error:
        return Finding("sums", ok=None, found=str(error), do=error.hint)
    if not wanted:
        return Finding("sums", ok=None, found="no two nodes that could share layers", do="")
    texts = [sum_text(pair) for pair in found]
    if len(found) < wanted:
        texts.append(
            f"{wanted - len(found)} of {wanted} pairs are not measured yet: measuring waits for answers to end"
        )
    return Finding("sums", ok=None, found="; ".join(texts), do="`edgepp plan MODEL` says whether sharing layers pays")


def tried(status: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The pairs of nodes whose measurement has ended, with figures or with a problem."""
    return [pair for pair in status["sums"] if pair["latency_s"] is not None or pair["problem"]]
