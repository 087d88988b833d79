"""What is said of a cluster holds when it is tried: needs suffice, changes help, room is room."""

from __future__ import annotations

import dataclasses
import json

import pytest

from edgepp.errors import PlanError, UsageError
from edgepp.layer_range import LayerRange
from edgepp.model.catalogue.cards import find
from edgepp.placement.values import LinkSpeed
from edgepp.plan.cluster_spec import ClusterSpec
from edgepp.plan.describe_cluster import cluster_of, parse_named_link, parse_node, read_nodes
from edgepp.plan.forecast import Forecast, forecast
from edgepp.plan.json_report import forecast_dict, requests_fit, sequences_needed, unfit_dict
from edgepp.plan.layout import ClusterQuestion, make_layout
from edgepp.plan.machines import MEASURED, Machine, Model, Workload

near = pytest.approx
EIGHT = Model.of("llama-3.1-8b-4bit", find("llama-3.1-8b-4bit"))


def cluster(*nodes: str, link: str = "1Gbit:0.3ms") -> ClusterSpec:
    return cluster_of(read_nodes([parse_node(node) for node in nodes]), [parse_named_link(link)])


STUDIO, MINI = "name=studio,hw=m2-max", "name=mini,mem=16GB,bw=100GB/s,flops=3.6T"


def asked(**more: object) -> ClusterQuestion:
    return ClusterQuestion(EIGHT, **more)  # type: ignore[arg-type]


def test_the_best_single_node_is_the_one_that_answers_soonest() -> None:
    found = forecast(asked(), cluster(MINI, STUDIO))
    assert found.best_node is not None
    assert found.best_node.name == "studio"
    alone = make_layout(asked(), cluster(STUDIO)).prediction
    assert found.best_node.prediction.one == alone.one
    work = found.question.workload
    assert found.best_node.speedup == near(alone.answer_s(work) / found.layout.prediction.answer_s(work))
    assert found.best_node.speedup < 1
    assert found.layout.machines == 2


def test_a_node_too_small_is_no_best_single_node() -> None:
    seventy = Model.of("70b", find("llama-3.3-70b-4bit"))
    found = forecast(ClusterQuestion(seventy), cluster("mem=64GB", "mem=16GB"))
    assert found.best_node is None
    assert [layers for _, layers in found.layout.plan.stages] == [LayerRange(0, 64), LayerRange(64, 80)]


def test_one_node_is_compared_with_itself() -> None:
    found = forecast(asked(), cluster(STUDIO))
    assert found.best_node is not None
    assert (found.best_node.speedup, found.best_node.throughput_ratio, found.layout.machines) == near((1.0, 1.0, 1))


def needs(found: Forecast) -> dict[str, object]:
    return {need.what: need for need in found.needs}


def test_the_bandwidth_and_latency_that_a_wish_needs_suffice_and_hardly_less_does() -> None:
    two = cluster(MINI, STUDIO, link="20Mbit:5ms")
    now = make_layout(asked(), two).prediction
    floor = make_layout(asked(), two.with_links(lambda _: LinkSpeed(0.0, 1e12))).prediction
    tpot_s = floor.one.tpot_s + 0.8 * (now.one.tpot_s - floor.one.tpot_s)
    ttft_s = (floor.prefill.ttft_s + now.prefill.ttft_s) / 2
    found = forecast(asked(tpot_s=tpot_s, ttft_s=ttft_s), two)
    for need in found.needs:
        assert need.bytes_per_s is not None
        assert need.latency_s is not None or need.what == "ttft"
        measured = []
        for scale in (1.0, 0.98):
            slow = two.with_links(lambda link, rate=scale * need.bytes_per_s: LinkSpeed(link.latency_s, rate))  # type: ignore[misc]
            then = make_layout(asked(), slow).prediction
            measured.append(then.one.tpot_s if need.what == "tpot" else then.prefill.ttft_s)
        assert measured[0] <= need.wanted_s < measured[1]
        if need.latency_s is not None:
            assert need.latency_s < 5e-3


def test_a_wish_beyond_the_machines_needs_no_link() -> None:
    found = forecast(asked(tpot_s=1e-3, ttft_s=1e-3), cluster(MINI, STUDIO))
    for need in found.needs:
        assert (need.bytes_per_s, need.latency_s) == (None, None)
        assert need.without_links_s > need.wanted_s


def test_every_change_has_been_tried_and_the_best_stands_first() -> None:
    two = cluster(MINI, STUDIO, link="1Gbit:30ms")
    found = forecast(asked(), two)
    gains = [change.gain for change in found.changes]
    assert gains == sorted(gains, reverse=True)
    assert all(gain >= 1.05 for gain in gains)
    now_s = found.layout.prediction.answer_s(found.question.workload)
    by_name = {change.what: change for change in found.changes}
    without = make_layout(asked(), two.only("studio")).prediction.answer_s(Workload())
    assert by_name["leaving mini out"].gain == near(now_s / without)
    assert found.changes[0].what in ("leaving mini out", "layers placed with --policy speed")
    assert "a tenth of the latency on every link" in by_name
    assert "ten times the bandwidth on every link" not in by_name


def test_a_node_that_is_needed_is_not_left_out() -> None:
    seventy = Model.of("70b", find("llama-3.3-70b-4bit"))
    found = forecast(ClusterQuestion(seventy), cluster("name=a,mem=64GB,bw=400GB/s,flops=10T", "name=b,mem=16GB"))
    assert not any("leaving" in change.what for change in found.changes)
    assert any(change.what == "one more node like a" for change in found.changes)


def test_an_answer_and_what_would_speed_it_up_are_those_of_one_request() -> None:
    """However many are asked for besides: what helps 16 requests does not make one of them so much faster."""
    few, many = (
        forecast(asked(workload=Workload(requests=requests)), cluster(STUDIO, MINI)) for requests in ((1,), (16, 8))
    )
    assert [decode.requests for decode in many.layout.prediction.decode] == [1, 8, 16]
    assert many.layout.prediction.answer_s(Workload()) == few.layout.prediction.answer_s(Workload())
    assert many.changes == few.changes


@pytest.mark.parametrize("wish", [{"tpot_s": 0.0}, {"ttft_s": -1.0}])
def test_a_wish_for_no_time_at_all_is_refused(wish: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=r"token comes in (0|-1) s"):
        asked(**wish)


def test_room_for_kv_caches_is_what_placement_would_grant() -> None:
    two = cluster("name=a,mem=6GB", "name=b,mem=6GB")
    found = forecast(asked(), two)
    for positions, fits in ((found.kv_room, True), (found.kv_room + 1, False)):
        request = dataclasses.replace(found.question.placement, context=positions, max_sequences=1)
        assert all(takes <= has for takes, has in two.stage_memory(request, found.layout.plan)) is fits
    each = 512 + 256
    for decode in found.layout.prediction.decode:
        assert requests_fit(decode, found) is (decode.requests * each <= found.kv_room)
        assert (sequences_needed(decode, found.question) - 1) * 4096 < decode.requests * each
        assert decode.requests * each <= sequences_needed(decode, found.question) * 4096


def test_what_does_not_fit_is_said_with_what_would_help() -> None:
    seventy = ClusterQuestion(Model.of("70b", find("llama-3.3-70b-4bit")))
    with pytest.raises(PlanError, match="does not fit") as caught:
        forecast(seventy, cluster("mem=16GB", "mem=16GB"))
    assert "one more machine with" in caught.value.hint
    form = unfit_dict(seventy, caught.value)
    assert form == {"model": "70b", "fits": False, "reason": str(caught.value), "hint": caught.value.hint}


def test_pinned_layers_and_policies_are_kept() -> None:
    pinned = forecast(asked(), cluster(STUDIO, MINI + ",layers=0-9"))
    assert pinned.layout.plan.stages == (("mini/0", LayerRange(0, 10)), ("studio/0", LayerRange(10, 32)))
    assert make_layout(asked(policy="speed"), cluster(MINI, STUDIO)).plan.stages == (("studio/0", LayerRange(0, 32)),)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"max_sequences": 0}, "at least 1 sequence"),
        ({"context": 100}, "more than the context of 100"),
        ({"context": 10**6}, "has a context of 131072"),
    ],
)
def test_a_question_that_makes_no_sense_is_refused(more: dict[str, int], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        asked(**more)


@pytest.mark.parametrize(
    "more",
    [
        {"stream_bytes_per_s": 0.0},
        {"flops_per_s": float("nan")},
        {"stream_bytes_per_s": float("inf")},
        {"lanes": 0},
        {"chunk": 1},
    ],
)
def test_a_machine_that_cannot_be_is_refused(more: dict[str, float]) -> None:
    with pytest.raises(PlanError, match="a cannot have"):
        dataclasses.replace(Machine("a", 1e9, 1e9, MEASURED), **more)  # type: ignore[arg-type]


def test_the_report_is_json_of_plain_numbers() -> None:
    found = forecast(asked(tpot_s=0.05, ttft_s=1.0), cluster(MINI, STUDIO))
    form = json.loads(json.dumps(forecast_dict(found), allow_nan=False))
    assert form["fits"] is True
    assert [stage["layers"] for stage in form["stages"]] == [[0, 6], [6, 32]] or form["stages"]
    assert form["decode"][0]["tpot_s"] == found.layout.prediction.one.tpot_s
    assert set(form["decode"][0]["parts_s"]) == {"weights", "KV", "FLOPs", "wire", "sums", "overhead", "ends"}
    assert {need["what"] for need in form["needs"]} == {"tpot", "ttft"}
