"""Which pairs of members are measured, when, and what becomes of the results."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from edgepp.coordinator.planner import Planner
from edgepp.coordinator.rank_loads import nodes_of
from edgepp.coordinator.sum_measurements import FIRST_RETRY_S, MEASURE_S, SumMeasurements
from edgepp.model.catalogue.cards import find
from edgepp.placement.values import ModelSize, PlacementRequest
from edgepp.wire.messages.rank_meetings import MeasureSum, RankAt, RankListens, SumMeasured
from tests.unit.coordinator.planned_cluster import HERE, MINI, Cluster


@pytest.fixture
def cluster() -> Cluster:
    cluster = Cluster()
    cluster.join(HERE)
    cluster.join(MINI)
    return cluster


def measurements(cluster: Cluster, policy: str = "speed") -> SumMeasurements:
    planner: Planner = cluster.planner
    planner.request = replace(planner.request, policy=policy)  # type: ignore[arg-type]
    return SumMeasurements(cluster.members, planner)


def begin(found: SumMeasurements, now_s: float = 0.0) -> dict[str, MeasureSum]:
    return {node: order for node, order in found.step(now_s, idle=True) if isinstance(order, MeasureSum)}


def test_a_pair_is_measured_and_its_cost_reaches_the_planner(cluster: Cluster) -> None:
    found = measurements(cluster)
    assert found.step(0.0, idle=False) == []
    orders = begin(found)
    assert {order.rank for order in orders.values()} == {0, 1}
    assert len(orders) == 2
    assert cluster.planner.measuring
    group, width = orders[HERE].group, orders[HERE].width
    assert found.listens(HERE, RankListens(group, 4001))
    assert found.step(1.0, idle=True) == []
    assert found.listens(MINI, RankListens(group, 4002))
    told: dict[str, Any] = dict(found.step(1.0, idle=True))
    assert {node: (type(order), order.rank) for node, order in told.items()} == {
        HERE: (RankAt, orders[MINI].rank),
        MINI: (RankAt, orders[HERE].rank),
    }
    first = next(node for node, order in orders.items() if order.rank == 0)
    found.measured(first, SumMeasured(group, 300_000, 64, 300_000 + 63 * width * 40, ""), 2.0)
    [cost] = cluster.planner.sums.values()
    assert cost.bytes_per_s == pytest.approx(1e8)
    assert cost.latency_s == pytest.approx(300e-6 - width * 4 / 1e8)
    assert begin(found, 3.0) == {}
    assert not cluster.planner.measuring
    [pair] = found.report()
    assert pair["latency_s"] == cost.latency_s
    assert pair["problem"] == ""


def test_nothing_is_measured_unless_needed(cluster: Cluster) -> None:
    found = measurements(cluster, "memory")
    assert begin(found) == {}
    assert found.ask() == {"pairs": 1, "measured": 0}
    assert len(begin(found)) == 2


@pytest.mark.parametrize("how", ["refused", "late"])
def test_a_failure_is_told_and_tried_again_later(how: str, cluster: Cluster) -> None:
    found = measurements(cluster)
    orders = begin(found)
    first = next(node for node, order in orders.items() if order.rank == 0)
    if how == "refused":
        found.measured(first, SumMeasured(orders[first].group, 0, 1, 0, "no keys"), 1.0)
    failed_s = 1.0 if how == "refused" else MEASURE_S + 1
    assert begin(found, failed_s) == {}
    assert found.report()[0]["problem"]
    assert len(begin(found, failed_s + FIRST_RETRY_S + 1)) == 2


def test_reports_that_belong_to_no_measurement_change_nothing(cluster: Cluster) -> None:
    found = measurements(cluster)
    found.measured(HERE, SumMeasured(1, 5, 64, 500, ""), 0.0)
    assert not found.listens(HERE, RankListens(1, 4001))
    orders = begin(found)
    second = next(node for node, order in orders.items() if order.rank == 1)
    found.measured(second, SumMeasured(orders[second].group, 5, 64, 500, ""), 1.0)
    found.measured(HERE, SumMeasured(orders[HERE].group + 1, 5, 64, 500, ""), 1.0)
    assert cluster.planner.sums == {}


LARGE = ModelSize.of(find("llama-3.2-1b-4bit"))
SLOW_NS, FAST_NS = 5_000_000, 250_000


def end(found: SumMeasurements, orders: dict[str, MeasureSum], now_s: float, row_ns: int) -> None:
    """End the measurement that has the ``orders``: a sum of one row takes ``row_ns`` nanoseconds."""
    first = next(node for node, order in orders.items() if order.rank == 0)
    width = orders[first].width
    found.measured(first, SumMeasured(orders[first].group, row_ns, 64, row_ns + 63 * width * 36, ""), now_s)


def test_a_cable_is_measured_and_stages_become_a_group(cluster: Cluster) -> None:
    cluster.planner.change_model("large", PlacementRequest(LARGE, 2048, 1, "speed"))
    found = SumMeasurements(cluster.members, cluster.planner)
    end(found, begin(found), 0.0, SLOW_NS)
    cluster.join(HERE, 600_000_000)
    cluster.join(MINI, 800_000_000)
    cluster.until_complete(10.0)
    assert cluster.planner.plan is not None
    assert len(cluster.planner.plan.stages) == 2, "neither machine holds the model alone"
    assert begin(found, cluster.now_s) == {}
    slow = dict(cluster.planner.sums)

    cluster.join(MINI, 800_000_000, addresses="10.0.0.2,169.254.9.9")
    orders = begin(found, cluster.now_s)
    assert cluster.planner.sums == slow, "what was known counts until the cable is measured"
    end(found, orders, cluster.now_s, FAST_NS)
    found.step(cluster.now_s, idle=True)
    cluster.after(3.0)
    [(group, layers)] = cluster.planner.plan.stages
    assert len(layers) == LARGE.layers
    assert nodes_of(group) == {HERE, MINI}
