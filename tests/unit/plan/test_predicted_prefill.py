"""Predictions of prefill: chunks as the engine cuts them, and what overlaps."""

from __future__ import annotations

import dataclasses

import pytest

from edgepp.engine.chunk_sizer import ChunkSizer
from edgepp.layer_range import split_evenly
from edgepp.placement.values import LinkSpeed
from edgepp.plan.machines import Stage, Workload
from edgepp.plan.predict import predict
from tests.builders.stages import stage_info
from tests.unit.plan.toy_cluster import FAST, MODEL, SIZE, even, machine, near


@pytest.mark.parametrize("stages", [1, 2, 3])
@pytest.mark.parametrize("flops", [1e9, 1e10, 1e12])
def test_chunks_are_those_of_the_engine(stages: int, flops: float) -> None:
    machines = [machine(f"m{n}", 1e12, flops) for n in range(stages)]
    found = predict(MODEL, even(machines), {}, Workload(requests=(1,))).prefill
    infos = [
        stage_info(index=n, layers=layers, prefill_s=len(layers) * SIZE.layer_flops / flops)
        for n, layers in enumerate(split_evenly(10, stages))
    ]
    assert found.chunk == near(ChunkSizer(infos).chunk, abs=1)


# Prefill


def test_chunks_overlap_across_stages() -> None:
    """8 chunks over 2 stages of equal speed take as long as 9 chunks of one stage."""
    work = Workload(prompt=512, answer=1, requests=(1,), chunk=64)
    machines = [machine("a", 1e15), machine("b", 1e15)]
    found = predict(MODEL, even(machines), {("a", "b"): FAST}, work).prefill
    chunk_s = 64 * 5 * 2e8 / 1e12
    assert found.ttft_s == near(9 * chunk_s, rel=0.01)
    assert found.tokens_per_s == near(512 / found.ttft_s)
    assert found.stages[0].arithmetic_s == near(8 * chunk_s)


def test_a_long_way_round_starves_the_ring_of_chunks() -> None:
    """Two stages hold 4 chunks at once; with 1 s each way, 8 of them take two rounds."""
    work = Workload(prompt=8, answer=1, requests=(1,), chunk=1)
    found = predict(MODEL, even([machine("a", 1e15), machine("b", 1e15)]), {("a", "b"): LinkSpeed(1.0, 1e15)}, work)
    assert found.prefill.ttft_s == near(4.0, rel=0.01)


def test_chunks_on_one_core_overlap_nothing_and_on_two_no_more_than_two() -> None:
    """2 chunks through 4 stages: 8 turns on one core; on two the second chunk follows the first, one turn later."""
    work = Workload(prompt=128, answer=1, requests=(1,), chunk=64)
    turn_s = 64 * 2.5 * 2e8 / 1e12
    for lanes, turns in ((1, 8), (2, 5), (4, 5)):
        box = dataclasses.replace(machine("a", 1e15), lanes=lanes)
        model = dataclasses.replace(MODEL, size=dataclasses.replace(SIZE, layers=12))
        stages = [Stage(box, layers) for layers in split_evenly(12, 4)]
        found = predict(model, stages, {}, work).prefill
        assert found.ttft_s == near(turns * turn_s * 3 / 2.5, rel=0.01)


def test_attention_grows_with_the_prompt() -> None:
    model = dataclasses.replace(MODEL, attention_flops=10**6)
    rates = [
        predict(model, even([machine("a")]), {}, Workload(prompt=n, answer=1, requests=(1,))).prefill.tokens_per_s
        for n in (512, 1024, 4096)
    ]
    assert rates == sorted(rates, reverse=True)
