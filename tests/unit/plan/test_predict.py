"""Predictions: numbers to check in the head, a simulation that shares no code, and the engine's own rules."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepp.engine.chunk_sizer import ChunkSizer
from edgepp.engine.scheduler import MicroBatch, PrefillChunk, Scheduler
from edgepp.errors import PlanError
from edgepp.layer_range import LayerRange
from edgepp.model.catalogue.cards import find
from edgepp.placement.values import LinkSpeed
from edgepp.plan.costs import Costs
from edgepp.plan.machines import MEASURED, Efficiency, Machine, Model, Stage, Workload
from edgepp.plan.predict import Decode, predict
from tests.builders.core_requests import make_request
from tests.builders.properties import examples
from tests.builders.stages import stage_info
from tests.unit.plan.toy_cluster import FAST, FREE, MODEL, SLOW, even, machine, near


def test_one_machine_streams_its_weights_its_cache_and_its_head() -> None:
    found = predict(MODEL, even([machine("a")]), {}, Workload(prompt=100, answer=20, requests=(1,)))
    stage = found.one.stages[0]
    assert stage.weights_s == near(10 * 1e8 / 1e10)
    assert stage.kv_s == near(10 * 1e4 * 110 / 1e10)
    assert found.one.ends_s == near(1e8 / 1e10)
    assert found.one.tpot_s == near(0.1 + 0.0011 + 0.01)
    assert (found.one.limit, stage.limit) == ("round trip", "weights")
    assert found.answer_s(Workload(100, 20)) == near(found.prefill.ttft_s + 19 * found.one.tpot_s)


def test_two_machines_add_three_hops_of_which_one_is_local() -> None:
    link = LinkSpeed(latency_s=0.002, bytes_per_s=4e6)
    work = Workload(requests=(1,))
    apart = predict(MODEL, even([machine("a"), machine("b")]), {("b", "a"): link}, work).one
    together = predict(MODEL, even([machine("a"), machine("a")]), {}, work).one
    assert apart.tpot_s - together.tpot_s == near(2 * (0.002 + 4 * 1000 / 4e6))
    assert apart.parts["wire"] == near(0.006)


def test_a_hop_costs_software_too() -> None:
    slow = dataclasses.replace(FREE, hop_s=0.001)
    work = Workload(requests=(1,))
    assert predict(MODEL, even([machine("a", efficiency=slow)]), {}, work).one.tpot_s == near(
        predict(MODEL, even([machine("a")]), {}, work).one.tpot_s + 0.002
    )


def test_efficiency_scales_what_is_reached() -> None:
    half = Efficiency(stream=0.5, kv=0.25, flops=0.1, hop_s=0.0, sample_s=0.0)
    whole, less = (
        predict(MODEL, even([machine("a", efficiency=one)]), {}, Workload(requests=(1,))) for one in (FREE, half)
    )
    assert less.one.stages[0].weights_s == near(2 * whole.one.stages[0].weights_s)
    assert less.one.stages[0].kv_s == near(4 * whole.one.stages[0].kv_s)
    assert less.one.stages[0].arithmetic_s == near(10 * whole.one.stages[0].arithmetic_s)


def test_rows_hide_behind_weights_on_a_gpu_and_add_up_on_a_cpu() -> None:
    """A row's arithmetic takes 2 ms, the weights 100 ms: on a GPU 16 rows cost nothing, on a CPU each costs 0.44 ms."""
    work = Workload(prompt=64, answer=1, requests=(1, 16, 64))
    for overlap, sixteen in ((1.0, 0.1), (0.0, 0.1 + 15 * (64 * 0.002 - 0.1) / 63)):
        one, some, many = (
            found.stages[0].busy_s - found.stages[0].kv_s
            for found in predict(
                MODEL, even([machine("a", efficiency=dataclasses.replace(FREE, overlap=overlap))]), {}, work
            ).decode
        )
        assert (one, some, many) == near((0.1, sixteen, 64 * 0.002))


# Against a simulation of the ring


def simulated_cycle(services: Sequence[Sequence[float]], delays: Sequence[float]) -> float:
    """Seconds a lap of micro-batches that go round through stations with one server each, after many laps.

    Row i of ``services`` is what batch i takes at each station.
    """
    free, ready = [0.0] * len(delays), [0.0] * len(services)
    laps = 200
    began = 0.0
    for lap in range(laps):
        if lap == laps // 2:
            began = max(ready)
        for batch, takes in enumerate(services):
            at = ready[batch]
            for station, (service, delay) in enumerate(zip(takes, delays, strict=True)):
                at = free[station] = max(at + delay, free[station]) + service
            ready[batch] = at
    return (max(ready) - began) / (laps - laps // 2)


@settings(max_examples=examples(40))
@given(
    rates=st.lists(st.floats(1e8, 1e11), min_size=1, max_size=5),
    requests=st.integers(1, 12),
    latency=st.sampled_from([0.0, 0.001, 0.05]),
)
def test_a_cycle_is_what_a_simulation_of_the_ring_finds(rates: list[float], requests: int, latency: float) -> None:
    machines = [machine(f"m{n}", rate, 1e15) for n, rate in enumerate(rates)]
    names = ["c", *(one.node for one in machines)]
    links = {(a, b): LinkSpeed(latency, 1e15) for a in names for b in names if a < b}

    def decode(requests: int) -> Decode:
        return predict(MODEL, even(machines), links, Workload(requests=(requests,)), machine("c", 1e10, 1e15)).one

    found = decode(requests)
    rows = -(-requests // len(rates))
    sizes = [min(rows, requests - start) for start in range(0, requests, rows)]
    steps = [decode(size * len(rates)) for size in sizes]
    services = [[*(stage.busy_s for stage in step.stages), step.ends_s] for step in steps]
    expected = simulated_cycle(services, [latency] * len(services[0]))
    assert found.tpot_s == near(expected, rel=0.03)


@pytest.mark.parametrize("name", ["round trip", "link 0"])
def test_a_node_may_have_any_name(name: str) -> None:
    plain, odd = (
        predict(MODEL, even([machine(one), machine("b")]), {(one, "b"): FAST}, Workload(requests=(4,))).one
        for one in ("a", name)
    )
    assert odd.tpot_s == plain.tpot_s


def test_a_coordinator_that_shares_its_machine_with_a_stage_works_for_both() -> None:
    machines = [machine("a"), machine("b")]
    shared = predict(MODEL, even(machines), {("a", "b"): FAST}, Workload(requests=(2,))).one
    assert shared.limit == "a"
    assert shared.tpot_s == near(2 * (shared.stages[0].busy_s + shared.ends_s))
    lanes = [dataclasses.replace(one, lanes=2) for one in machines]
    assert predict(MODEL, even(lanes), {("a", "b"): FAST}, Workload(requests=(2,))).one.limit == "round trip"


def test_more_processes_than_lanes_wait_for_each_other() -> None:
    """Four stages on two cores: all seconds of four requests, hops' work and head too, over two would be 2 of each's.

    By hand: a micro-batch alone takes 1; a second waits for 1/2 of one's half, so both take 5/4; three 8/5; four 65/32.
    """
    hop_s = 0.001
    box = dataclasses.replace(machine("a", efficiency=dataclasses.replace(FREE, hop_s=hop_s)), lanes=2)
    found = predict(MODEL, even([box] * 4), {}, Workload(requests=(4,))).one
    each_s = sum(stage.busy_s for stage in found.stages) + found.ends_s + 5 * hop_s
    assert found.limit == "a"
    assert found.tpot_s == near(65 / 32 * each_s)


@pytest.mark.parametrize(("requests", "slower"), [(1, 1.0), (2, 1.5), (3, 2.0), (8, 2.0)])
def test_lanes_share_what_a_machine_has(requests: int, slower: float) -> None:
    """Three lanes are half as fast each while all of them work; two lose half as much as that."""
    box = dataclasses.replace(machine("a"), lanes=3, contention=2.0)
    shared = predict(MODEL, even([box] * 4), {}, Workload(requests=(requests,))).one
    free = predict(MODEL, even([dataclasses.replace(box, contention=1.0)] * 4), {}, Workload(requests=(requests,))).one
    assert shared.tpot_s == near(slower * free.tpot_s)
    apart = [dataclasses.replace(box, node=f"m{n}") for n in range(4)]
    alone = predict(MODEL, even(apart), {}, Workload(requests=(requests,)), machine("c")).one
    assert alone.stages[0].busy_s == near(free.stages[0].busy_s)


def test_processes_of_one_machine_may_be_told_to_have_a_link_between_them() -> None:
    work = Workload(requests=(1,))
    near_by, far = (predict(MODEL, even([machine("a")] * 2), links, work).one for links in ({}, {("a", "a"): SLOW}))
    assert far.tpot_s - near_by.tpot_s == near(3 * (0.01 + 4 * 1000 / 1e6))


def test_measured_batches_stand_in_for_what_lies_between_a_row_and_a_chunk() -> None:
    """The weights take 100 ms, a row of a chunk 2 ms: 64 of them 128 ms."""
    measured = dataclasses.replace(FREE, batches=((2, 1.0), (8, 1.2)))
    found = predict(
        MODEL,
        even([machine("a", efficiency=measured)]),
        {},
        Workload(prompt=64, answer=1, requests=(1, 2, 4, 8, 36, 128)),
    ).decode
    took = [one.stages[0].busy_s - one.stages[0].kv_s for one in found]
    assert took == near([0.1, 0.1, 0.1 + 0.02 / 3, 0.12, 0.124, 128 * 0.002])


def test_a_slow_link_holds_many_requests_up() -> None:
    """Three micro-batches pass it one after the other, 1 s each."""
    links = {("a", "b"): LinkSpeed(0.0, 4e3), ("b", "c"): FAST, ("a", "c"): FAST}
    stages = even([machine("a"), machine("b"), machine("c")])
    found = predict(MODEL, stages, links, Workload(requests=(3,))).one
    assert found.limit == "link 1"
    assert found.tpot_s == near(3.0)
    assert found.stages[1].limit == "wire"


# Against the engine's own rules


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
@pytest.mark.parametrize("requests", [1, 2, 3, 5, 8, 13, 300])
def test_micro_batches_are_those_of_the_scheduler(stages: int, requests: int) -> None:
    one = stage_info(chunk=1)
    scheduler = Scheduler(stages, ChunkSizer([one]))
    asked = {sequence: make_request(sequence, [0], sequence=sequence) for sequence in range(1, requests + 1)}
    for request in asked.values():
        scheduler.add(request)
    for _ in range(requests):  # everyone's prompt first, so that all are ready at once
        chunk = scheduler.next_step()
        assert isinstance(chunk, PrefillChunk)
        scheduler.returned(asked[chunk.sequence])
    for request in asked.values():
        request.ids.append(0)
        scheduler.sampled(request)
    sizes = []
    while isinstance(step := scheduler.next_step(), MicroBatch):
        sizes.append(len(step.sequences))
    found = predict(MODEL, even([machine(f"m{n}") for n in range(stages)]), {}, Workload(requests=(requests,))).one
    assert max(sizes) == -(-requests // found.micro_batches) or max(sizes) == 128
    assert len(sizes) == min(found.micro_batches, stages)


@given(
    latency=st.floats(0, 0.1),
    rate=st.floats(1e5, 1e10),
    more=st.floats(1.01, 100),
    requests=st.integers(1, 20),
)
def test_a_better_link_is_never_slower(latency: float, rate: float, more: float, requests: int) -> None:
    stages = even([machine("a"), machine("b"), machine("c")])

    def with_link(latency: float, rate: float) -> tuple[float, float]:
        links = {pair: LinkSpeed(latency, rate) for pair in (("a", "b"), ("b", "c"), ("a", "c"))}
        found = predict(MODEL, stages, links, Workload(requests=(requests,)))
        return found.one.tpot_s, found.prefill.ttft_s

    now, wider, quicker = with_link(latency, rate), with_link(latency, rate * more), with_link(latency / more, rate)
    assert all(b <= a * (1 + 1e-9) for better in (wider, quicker) for a, b in zip(now, better, strict=True))


def test_the_head_of_a_tied_model_is_its_embedding() -> None:
    for name in ("smollm2-135m", "llama-3.1-8b-4bit", "llama-3.1-8b-bf16"):
        card = find(name)
        model = Model.of(name, card)
        assert 0 <= card.bytes_embedding - model.head_bytes <= 2 * card.hidden
        assert model.head_flops == 2 * card.vocabulary * card.hidden


def test_stages_that_do_not_make_up_the_model_are_refused() -> None:
    with pytest.raises(PlanError, match="layers 5-9 are missing"):
        predict(MODEL, [Stage(machine("a"), LayerRange(0, 5))], {}, Workload())


@pytest.mark.parametrize("work", [Workload(prompt=0), Workload(answer=0), Workload(requests=()), Workload(chunk=0)])
def test_nothing_asked_is_refused(work: Workload) -> None:
    with pytest.raises(PlanError, match="at least 1"):
        predict(MODEL, even([machine("a")]), {}, work)


def test_a_measured_rate_is_what_is_reached() -> None:
    assert (MEASURED.stream, MEASURED.flops, MEASURED.overlap) == (1, 1, 0)


@pytest.mark.parametrize("overlap", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("batches", [(), ((2, 1.1), (4, 1.5))])
@pytest.mark.parametrize("flops", [5e9, 30e9, 1e12])
def test_no_number_of_rows_takes_less_than_its_own_arithmetic(
    flops: float, batches: tuple[tuple[int, float], ...], overlap: float
) -> None:
    machine = Machine("a", 50e9, flops, Efficiency(overlap=overlap, batches=batches))
    model = Model.of("llama-3.2-3b-4bit", find("llama-3.2-3b-4bit"))
    costs = Costs(model, [Stage(machine, LayerRange(0, 28))], {}, machine)
    times = [costs.stage_s(0, rows, 0, 0) for rows in (1, 2, 3, 8, 64)]
    assert times[0].busy_s >= 28 * model.size.layer_flops / flops
    assert all(a.busy_s <= b.busy_s for a, b in itertools.pairwise(times))
    assert costs.ends_s(1) >= model.head_flops / flops
