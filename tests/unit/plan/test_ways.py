"""Sharing each layer, a pipeline and one machine compared, and the sentence about them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from edgepp.placement.values import LinkSpeed
from edgepp.plan.cluster_spec import ClusterSpec, Node
from edgepp.plan.forecast import forecast
from edgepp.plan.json_report import forecast_dict
from edgepp.plan.layout import ClusterQuestion, make_layout
from edgepp.plan.machines import Machine, shared_machine
from edgepp.plan.planned_model import read_model
from edgepp.plan.ways import ways
from edgepp.ui.plan import best_way_text

ONE_B = ClusterQuestion(read_model("llama-3.2-1b-4bit"))


def cluster(latency_s: float, *rates: float, memory: float = 8e9) -> ClusterSpec:
    machines = (Machine(name, rate, 20 * rate) for name, rate in zip("abcd", rates, strict=False))
    return ClusterSpec(tuple(Node(one, int(memory)) for one in machines), default=LinkSpeed(latency_s, 110e6))


def best(spec: ClusterSpec, question: ClusterQuestion = ONE_B) -> str:
    return ways(question, spec)[0].name


def test_quick_links_share_layers_and_slow_links_do_not() -> None:
    assert best(cluster(0.0001, 10e9, 10e9)) == "tensor"
    assert best(cluster(0.01, 10e9, 10e9)) != "tensor"
    assert ways(ONE_B, cluster(0.0001, 10e9)) == ()


def test_sums_that_were_not_measured_share_nothing() -> None:
    spec = replace(cluster(0.0001, 10e9, 10e9), measured_sums={})
    assert make_layout(replace(ONE_B, policy="speed"), spec).stages[0].names == ("a",)
    measured = replace(spec, measured_sums={("a", "b"): LinkSpeed(0.0002, 110e6)})
    [stage] = make_layout(replace(ONE_B, policy="speed"), measured).stages
    assert stage.names == ("a", "b")


def test_a_token_is_halves_and_sums_and_head() -> None:
    spec = cluster(0.0001, 10e9, 10e9)
    layout = make_layout(replace(ONE_B, tensor=2), spec)
    one, size = layout.prediction.one, ONE_B.model.size
    row_s = 0.0001 + 0.00015 + size.hidden * 4 / 110e6
    assert one.stages[0].sums_s == pytest.approx(size.layers * 2 * row_s)
    assert one.stages[0].weights_s == pytest.approx(size.layers * size.layer_bytes / 20e9, rel=0.01)
    assert one.tpot_s == pytest.approx(sum(one.parts.values()) - one.parts["FLOPs"], rel=0.05)


def test_the_slowest_rank_counts() -> None:
    machines = [Machine("a", 30e9, 600e9), Machine("b", 10e9, 100e9)]
    shared = shared_machine(machines, [0.75, 0.25], LinkSpeed(0.0, 1e9))
    assert (shared.node, shared.ranks) == ("a", 2)
    assert shared.stream_bytes_per_s == pytest.approx(40e9)
    assert shared.flops_per_s == pytest.approx(400e9)


def test_the_sentence_names_the_best_way_and_by_how_much() -> None:
    text = best_way_text(ways(ONE_B, cluster(0.0001, 10e9, 10e9)), "memory")
    assert text.startswith("Best for one answer is sharing each layer (a and b): ")
    assert "times as fast as one machine (a)" in text
    assert "of a token" in text
    assert best_way_text((), "memory") == ""
    slow = best_way_text(ways(ONE_B, cluster(0.01, 10e9, 10e9)), "memory")
    assert "times as fast as sharing each layer" in slow


def test_json_has_all_ways() -> None:
    found = json.loads(json.dumps(forecast_dict(forecast(ONE_B, cluster(0.0001, 10e9, 10e9)))))
    assert found["ways"][0]["way"] == "tensor"
    assert {way["way"] for way in found["ways"]} == {"tensor", "pipeline", "one"}
    assert found["sums"] == [{"nodes": ["a", "b"], "bytes_per_s": 110e6, "latency_s": pytest.approx(0.00025)}]


def test_a_model_that_fits_only_several_machines_has_no_way_of_one() -> None:
    question = ClusterQuestion(read_model("llama-3.1-8b-4bit"))
    assert {way.name for way in ways(question, cluster(0.0001, 30e9, 30e9, memory=5e9))} == {"tensor", "pipeline"}
