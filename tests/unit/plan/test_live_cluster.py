"""A plan for a live cluster: what its nodes measured and report."""

from __future__ import annotations

from typing import Any

import pytest

from edgepp.errors import EdgeppError, RemoteProtocolError
from edgepp.layer_range import LayerRange
from edgepp.placement.costs import memory_needed
from edgepp.placement.values import UNKNOWN_LINK, LinkSpeed, ModelSize
from edgepp.plan.live_cluster import from_status
from edgepp.plan.machines import Model, Stage, Workload, shared_machine
from edgepp.plan.predict import predict
from tests.builders.members import live_node, live_stage
from tests.unit.coordinator.planned_cluster import HERE, MINI
from tests.unit.coordinator.planned_cluster import Cluster as Members

near = pytest.approx

# A live cluster


def test_a_live_cluster_is_what_its_nodes_measured() -> None:
    status = {
        "coordinator": "a",
        "nodes": [
            live_node("b", device="metal", pinned=[0, 4]),
            live_node("a", roles=["coordinator", "stage"]),
            live_node("c", state="gone"),
            live_node("d"),
        ],
        "stages": [
            live_stage("a"),
            live_stage("b", link_bytes_per_s=5e7),
            live_stage("d", hop_s=0.006, link_bytes_per_s=1e7),
        ],
    }
    cluster = from_status(status)
    assert [node.name for node in cluster.nodes] == ["a", "b", "d"]
    a, b, _ = cluster.nodes
    assert (a.memory_bytes, a.machine.stream_bytes_per_s, a.machine.efficiency.stream) == (8e9, 1e10, 1.0)
    assert (a.machine.efficiency.overlap, b.machine.efficiency.overlap) == (0.0, 1.0)
    assert b.pinned == LayerRange(0, 4)
    assert cluster.links == {
        ("a", "b"): LinkSpeed(0.001, 5e7),
        ("a", "d"): LinkSpeed(0.002, UNKNOWN_LINK.bytes_per_s),
        ("b", "d"): LinkSpeed(0.003, 1e7),
    }


def test_what_stages_measured_with_the_model_goes_before_the_probe() -> None:
    """Two stages of 15 layers in 10 ms each, of which the probe explains 1.5 ms; at 300 token/s each in prefill."""
    timed: dict[str, Any] = {"decode_s": 0.01, "prefill_tokens_per_s": 300.0}
    status: dict[str, Any] = {
        "coordinator": "a",
        "nodes": [live_node("a", roles=["coordinator"], layers=[[0, 15], [15, 30]], stage_slots=2), live_node("b")],
        "stages": [live_stage("a", layers=[0, 15], **timed), live_stage("a", layers=[15, 30], **timed)],
    }
    size = ModelSize(30, 576, layer_bytes=10**6, ends_bytes=0, kv_bytes=1, layer_flops=10**7)
    a, b = from_status(status, size).nodes
    assert (a.machine.stream_bytes_per_s, a.machine.lanes) == (1e10, 2)
    row_s = (64 * 2 / 300 - 0.02) / 63  # longer than the 3 ms in which the weights are streamed
    assert a.machine.efficiency.layer_s == near((0.02 - row_s) / 30)
    assert a.machine.flops_per_s == near(300e6 / row_s)
    model = Model("m", size, head_bytes=0, head_flops=0, attention_flops=0, context=4096)
    stages = [Stage(a.machine, LayerRange(0, 15)), Stage(a.machine, LayerRange(15, 30))]
    found = predict(model, stages, {}, Workload(prompt=64, answer=1, requests=(1,), chunk=64))
    assert sum(stage.busy_s for stage in found.one.stages) == near(0.02, rel=1e-3)
    assert sum(stage.busy_s for stage in found.prefill.stages) == near(64 * 2 / 300, rel=1e-3)
    status["stages"][0]["decode_s"] = status["stages"][1]["decode_s"] = 0.001  # faster than its probe
    assert from_status(status, size).nodes[0].machine.efficiency.layer_s == near(0)
    assert a.source.endswith("with this model")
    assert b.machine.stream_bytes_per_s == 1e10
    status["stages"][0]["prefill_tokens_per_s"] = None
    assert from_status(status, size).nodes[0].machine.stream_bytes_per_s == 1e10


@pytest.mark.parametrize("probe", [3e8, 2e9, 1e10])
def test_steps_at_a_position_are_predicted_as_they_were_measured(probe: float) -> None:
    """Whatever the probe said: 30 layers in 20 ms at position 500, of which reading keys and values takes a part."""
    status: dict[str, Any] = {
        "coordinator": "a",
        "nodes": [live_node("a", roles=["coordinator"], layers=[[0, 30]], stream_bytes_per_s=probe)],
        "stages": [
            live_stage("a", layers=[0, 30], decode_s=0.02, decode_position=500, prefill_tokens_per_s=100.0),
        ],
    }
    size = ModelSize(30, 576, layer_bytes=10**6, ends_bytes=0, kv_bytes=2000, layer_flops=10**5)
    [a] = from_status(status, size).nodes
    model = Model("m", size, head_bytes=0, head_flops=0, attention_flops=0, context=4096)
    stages = [Stage(a.machine, LayerRange(0, 30))]
    found = predict(model, stages, {}, Workload(prompt=450, answer=100, requests=(1,), chunk=64)).one
    assert sum(stage.busy_s for stage in found.stages) == near(0.02, rel=1e-3)
    assert found.stages[0].kv_s > 0.001


@pytest.mark.parametrize("weights", [(1, 1), (3, 1)])
def test_ranks_on_two_machines_are_predicted_as_they_were_measured(weights: tuple[int, int]) -> None:
    """30 layers in 20 ms a row and 5 ms per token of a prompt, 6 ms of a row in sums."""
    ranks = [{"node_id": name * 8, "weight": weight} for name, weight in zip("ab", weights, strict=True)]
    status: dict[str, Any] = {
        "coordinator": "a",
        "nodes": [live_node("a", roles=["coordinator"], half_s=1e-5), live_node("b", half_s=1e-5)],
        "stages": [
            live_stage("a", layers=[0, 30], decode_s=0.02, decode_position=0, prefill_tokens_per_s=200.0, ranks=ranks)
        ],
        "sums": [{"node_ids": ["a" * 8, "b" * 8], "latency_s": 1e-4, "bytes_per_s": 1e9}],
    }
    size = ModelSize(30, 576, layer_bytes=10**6, ends_bytes=0, kv_bytes=2000, layer_flops=10**6)
    cluster = from_status(status, size)
    [cost] = cluster.sums.values()
    shares = [weight / sum(weights) for weight in weights]
    group = Stage(shared_machine([node.machine for node in cluster.nodes], shares, cost), LayerRange(0, 30))
    model = Model("m", size, head_bytes=0, head_flops=0, attention_flops=0, context=4096)
    found = predict(model, [group], {}, Workload(prompt=64, answer=1, requests=(1,), chunk=64))
    assert found.one.stages[0].sums_s == near(0.006, rel=0.03)
    assert found.one.stages[0].busy_s - found.one.stages[0].kv_s == near(0.02, rel=0.01)
    assert found.prefill.stages[0].busy_s - found.prefill.stages[0].kv_s == near(64 * 0.005, rel=0.02)


@pytest.mark.parametrize("probe", [3e8, 2e9, 1e10])
def test_ranks_that_compute_the_head_are_predicted_as_they_were_measured(probe: float) -> None:
    """30 layers and the head in 50 ms a row, 16 ms of it in sums and halves, whatever the probe said of reading."""
    ranks = [{"node_id": name * 8, "weight": 1} for name in "ab"]
    nodes = [
        live_node(name, roles=["coordinator"] if name == "a" else [], half_s=1e-4, stream_bytes_per_s=probe)
        for name in "ab"
    ]
    timed: dict[str, Any] = {"decode_s": 0.05, "decode_position": 0, "prefill_tokens_per_s": 100.0}
    status: dict[str, Any] = {
        "coordinator": "a",
        "nodes": nodes,
        "stages": [live_stage("a", layers=[0, 30], has_head=True, ranks=ranks, **timed)],
        "sums": [{"node_ids": ["a" * 8, "b" * 8], "latency_s": 3e-4, "bytes_per_s": 1e9}],
    }
    size = ModelSize(30, 576, layer_bytes=10**6, ends_bytes=0, kv_bytes=0, layer_flops=10**5, head_bytes=10**7)
    cluster = from_status(status, size)
    [cost] = cluster.sums.values()
    group = Stage(shared_machine([node.machine for node in cluster.nodes], [0.5, 0.5], cost), LayerRange(0, 30))
    model = Model("m", size, head_bytes=10**7, head_flops=0, attention_flops=0, context=4096)
    found = predict(model, [group], {}, Workload(prompt=64, answer=1, requests=(1,), chunk=64)).one
    sample_s = group.machine.efficiency.sample_s
    assert found.stages[0].busy_s + found.ends_s - sample_s == near(0.05, rel=0.01)


@pytest.mark.parametrize(("tokens_per_step", "measured"), [(1.0, True), (0.6, True), (2.0, False)])
def test_the_output_head_takes_what_it_took(tokens_per_step: float, measured: bool) -> None:
    status: dict[str, Any] = {
        "coordinator": "a",
        "nodes": [live_node("a", roles=["coordinator"], layers=[[0, 30]])],
        "stages": [live_stage("a", layers=[0, 30], decode_s=0.02, prefill_tokens_per_s=100.0)],
        "trip": {"tokens_per_step": tokens_per_step, "head_s": 0.0123},
    }
    size = ModelSize(30, 576, layer_bytes=10**6, ends_bytes=0, kv_bytes=2000, layer_flops=10**5)
    [a] = from_status(status, size).nodes
    model = Model("m", size, head_bytes=10**7, head_flops=10**7, attention_flops=0, context=4096)
    found = predict(model, [Stage(a.machine, LayerRange(0, 30))], {}, Workload(requests=(1, 4)))
    assert (found.one.ends_s == near(0.0123)) is measured
    assert found.decode[1].ends_s > found.one.ends_s


@pytest.mark.parametrize(("memory", "slots"), [(2 * 10**9, 1), (2 * 10**9, 2), (10**9, 3)])
def test_a_node_with_several_stages_counts_as_the_coordinator_counts_it(memory: int, slots: int) -> None:
    """The same stages on the same nodes, by the coordinator's own planner and by a plan on what it says of them."""
    real = Members()
    real.join(HERE, memory, stage_slots=slots)
    real.join(MINI, 10**9)
    real.after(2.0)
    stages = real.planner.stages(real.members)
    nodes = [
        live_node(
            member.node[0], node=member.node, memory_bytes=member.facts.memory_bytes,
            stream_bytes_per_s=member.facts.stream_bytes_per_s,
            flops_per_s=member.facts.flops_per_s, roles=["coordinator"] if member.node == HERE else [],
            stage_slots=member.facts.stage_slots,
        )
        for member in real.members
    ]  # fmt: skip
    cluster = from_status({"coordinator": "a", "nodes": nodes, "stages": []})
    want = real.planner.request
    plan = cluster.place(want)
    assert [layers for _, layers in plan.stages] == [layers for _, _, layers, _ in stages]
    assert [stage.machine.node for stage in cluster.stages(plan, want)] == [member.node[0] for member, *_ in stages]
    assert len(plan.stages) == slots + 1
    takes = [memory_needed(want, len(layers), number == 0) for number, (_, _, layers, _) in enumerate(stages)]
    assert cluster.stage_memory(want, plan) == list(zip(takes, [memory // slots] * slots + [10**9], strict=True))
    here = cluster.coordinator.machine
    assert here.shared_by(slots).flops_per_s == near(1e11 / slots)


def test_a_coordinator_without_layers_stands_first() -> None:
    status = {"coordinator": "desk", "nodes": [live_node("a"), live_node("a", node="other123")], "stages": []}
    cluster = from_status(status)
    assert [node.name for node in cluster.nodes] == ["desk (coordinator)", "a aaaaaa", "a other1"]
    assert cluster.coordinator.memory_bytes == 0


@pytest.mark.parametrize(
    "status",
    [
        {},
        {"nodes": 3, "stages": [], "coordinator": "a"},
        {"nodes": [{"state": "ready"}], "stages": [], "coordinator": "a"},
        {"nodes": [live_node("a", stream_bytes_per_s="fast")], "stages": [], "coordinator": "a"},
        {"nodes": [live_node("a", pinned=[1])], "stages": [], "coordinator": "a"},
    ],
)
def test_a_status_that_cannot_be_read_is_said(status: dict[str, Any]) -> None:
    with pytest.raises(RemoteProtocolError, match="status cannot be read"):
        from_status(status)


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
def test_a_rate_that_no_machine_has_is_refused(rate: float) -> None:
    status = {"nodes": [live_node("a", stream_bytes_per_s=rate)], "stages": [], "coordinator": "a"}
    with pytest.raises(EdgeppError):
        from_status(status)
