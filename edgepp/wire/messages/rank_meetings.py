"""Messages between nodes and the coordinator by which ranks on several nodes meet, as a stage or to measure sums.

The coordinator orders ranks by ``Load`` and ``MeasureSum``; their own messages are in ``ranks``.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from edgepp.wire.field_types import Addresses, Count, Id, Key, Name, Port, Rank, Rows, Text, Width


class RankListens(NamedTuple):
    """Node to coordinator: the rank that it was ordered to run listens on ``port`` for the other ranks of ``group``.

    Once all ranks listen, each node is told with ``RankAt`` where the others do.
    """

    group: Id
    port: Port


class RankAt(NamedTuple):
    """Coordinator to the node of a rank: another ``rank`` of ``group`` listens at ``addresses``, and proves ``key``."""

    group: Id
    rank: Rank
    addresses: Addresses
    key: Key
    name: Name
    """Name of the node of that rank."""


class MeasureSum(NamedTuple):
    """Coordinator to two nodes: measure the cost of sums over both, as two ranks of ``group``; see ``RankListens``.

    A later ``MeasureSum`` takes the place of one under way.
    """

    group: Id
    rank: Rank
    width: Width
    """Columns of the partial sums: the hidden size of the model."""


class SumMeasured(NamedTuple):
    """Rank 0 of a ``MeasureSum`` to coordinator: nanoseconds of a sum of one row, and of one of ``rows`` rows.

    ``reason`` says why nothing was measured; empty where it was.
    """

    group: Id
    row_ns: Count
    rows: Rows
    rows_ns: Count
    reason: Text


RankMeetingMessage: TypeAlias = RankListens | RankAt | MeasureSum | SumMeasured
