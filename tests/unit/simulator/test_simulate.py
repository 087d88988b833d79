from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.toolkit.guess_model import RingCosts, tokens_per_s
from edgepp.engine.ledger import MAX_WAITING
from edgepp.errors import UsageError
from edgepp.simulator.costs import HEADER_BYTES, CoordinatorCost, LinkCost, Replica, StageCost, seconds_at
from edgepp.simulator.simulate import ROUTING_POLICIES, simulate
from edgepp.simulator.workload import Arrival, Failure, RecoveryPolicy, at_once, failures, poisson, read_trace
from tests.builders.properties import examples

FREE = CoordinatorCost(head=((1, 0.0),))
MODEL = StageCost(((1, 0.08), (8, 0.15)), token_s=0.004)


def even(stages: int = 2, model: StageCost = MODEL, link: LinkCost | None = None, **options: object) -> Replica:
    settings: dict[str, object] = {"coordinator": FREE, "row_bytes": 1000, "chunk": 64} | options
    return Replica.even(model, stages, link or LinkCost(0.0), **settings)  # type: ignore[arg-type]


def test_a_lone_request_takes_what_its_parts_take() -> None:
    coordinator = CoordinatorCost(((1, 0.003),), send_s=0.001, row_s=0.0001, receive_s=0.0005)
    link = LinkCost(0.01, bytes_per_s=1e6)
    lone = simulate([even(2, link=link, coordinator=coordinator)], [Arrival(5.0, "a", 8, 3)]).outcomes[0]
    wire_s = 2 * (HEADER_BYTES + 8 * 1000) / 1e6 + (HEADER_BYTES + 1000) / 1e6 + 3 * 0.01
    first_s = 0.001 + 8 * 0.0001 + 8 * 0.004 + wire_s + 0.0005 + 0.003
    step_s = 0.001 + 0.0001 + 0.08 + 3 * (HEADER_BYTES + 1000) / 1e6 + 3 * 0.01 + 0.0005 + 0.003
    assert lone.status == "answered"
    assert lone.first_s == pytest.approx(first_s)
    assert lone.last_s == pytest.approx(first_s + 2 * step_s)
    assert lone.decode_tokens_per_s == pytest.approx(1 / step_s)


@pytest.mark.parametrize(("stages", "acceptance"), [(2, 0.5), (2, 0.7), (3, 0.6), (4, 0.5)])
def test_guesses_keep_the_stages_of_a_lone_request_busy(stages: int, acceptance: float) -> None:
    plain, guessing = (
        simulate([even(stages)], [Arrival(0.0, "a", 8, 1500, acceptance=share)]) for share in (None, acceptance)
    )
    model = tokens_per_s(RingCosts((0.08 / stages,) * stages, 0.0, 0.0), acceptance)
    assert plain.outcomes[0].decode_tokens_per_s == pytest.approx(1 / 0.08)
    assert guessing.outcomes[0].decode_tokens_per_s == pytest.approx(model, rel=0.05)
    assert guessing.bubbles < plain.bubbles
    assert guessing.outcomes[0].right / guessing.tokens == pytest.approx(acceptance, abs=0.05)
    assert not plain.outcomes[0].guessed


def test_guesses_fade_out_as_requests_fill_the_stages() -> None:
    shares = []
    for requests in (1, 2, 4):
        arrivals = [replace(one, acceptance=0.7) for one in at_once(requests, 4, 200)]
        report = simulate([even(4)], arrivals)
        shares.append(sum(one.guessed for one in report.outcomes) / report.tokens)
    assert shares[0] > shares[1] > shares[2]
    assert shares[2] < 0.1


def test_positions_looked_back_on_cost_time() -> None:
    slow = replace(MODEL, row_position_s=0.001, token_position_s=0.0001)
    short, long = (simulate([even(1, slow)], [Arrival(0.0, "a", prompt, 2)]).outcomes[0] for prompt in (10, 60))
    assert long.last_s - long.first_s == pytest.approx(0.08 + 0.060)
    assert short.last_s - short.first_s == pytest.approx(0.08 + 0.010)
    assert long.first_s == pytest.approx(60 * (0.004 + 0.0001 * 30))


def test_as_many_requests_as_stages_keep_all_busy_and_one_leaves_bubbles() -> None:
    one = simulate([even(4)], at_once(1, 4, 200))
    four = simulate([even(4)], at_once(4, 4, 200))
    assert one.bubbles == pytest.approx(0.75, abs=0.01)
    assert four.bubbles < 0.03
    assert four.tokens_per_s == pytest.approx(4 * one.tokens_per_s, rel=0.02)


def test_more_rows_travel_together_where_there_are_more_requests() -> None:
    report = simulate([even(2)], at_once(8, 4, 100))
    assert 3.8 < report.rows <= 4
    assert report.tokens_per_s == pytest.approx(8 / (2 * seconds_at(MODEL.decode, 4) / 2), rel=0.05)


def test_the_coordinator_is_a_limit_of_its_own() -> None:
    coordinator = CoordinatorCost(((1, 0.01), (16, 0.16)))
    report = simulate([even(8, coordinator=coordinator)], at_once(64, 4, 400))
    assert 90 < report.tokens_per_s < 100
    assert report.coordinator_use > 0.9
    assert report.stage_use < 0.25


def test_a_link_carries_one_chunk_after_the_other() -> None:
    link = LinkCost(0.001, bytes_per_s=1e5)
    report = simulate([even(2, link=link)], [Arrival(0.0, "a", 640, 1)])
    assert report.ttft_s.maximum == pytest.approx(6.4 + 0.32 + 2 * 32 * 0.002, rel=0.02)


def test_no_more_micro_batches_than_stages_so_slow_links_leave_stages_idle() -> None:
    link = LinkCost(0.001, bytes_per_s=(HEADER_BYTES + 1000) * 10)
    report = simulate([even(2, link=link)], at_once(2, 1, 100))
    assert report.tokens_per_s == pytest.approx(2 / (0.08 + 3 * (0.1 + 0.001)), rel=0.02)
    assert report.bubbles > 0.75


def test_an_owner_s_shared_beginning_is_computed_once() -> None:
    mine = [Arrival(at, "me", 100, 4, shared=80) for at in (0.0, 50.0)]
    other = Arrival(100.0, "other", 100, 4, shared=80)
    report = simulate([even()], [*mine, other])
    assert [outcome.reused for outcome in report.outcomes] == [0, 80, 0]
    assert report.outcomes[1].first_s < report.outcomes[0].first_s / 3


def test_a_conversation_goes_on_from_its_last_answer() -> None:
    turns = [Arrival(0.0, "me", 100, 20, conversation=1), Arrival(50.0, "me", 150, 5, conversation=1)]
    others = [Arrival(100.0, "me", 150, 5, conversation=2), Arrival(150.0, "me", 150, 5)]
    report = simulate([even()], turns + others)
    assert [outcome.reused for outcome in report.outcomes] == [0, 119, 0, 0]


def test_who_finds_no_room_waits_or_gives_way_and_all_are_answered() -> None:
    report = simulate([even(budget=600)], at_once(12, 60, 100))
    assert report.answered == 12
    assert report.tokens == 1200
    assert report.replicas[0].preempted > 0
    assert report.queue_s.maximum > 1
    assert simulate([even()], at_once(12, 60, 100)).queue_s.maximum < 0.01


def test_what_can_never_fit_is_refused_and_so_are_too_many() -> None:
    report = simulate([even(budget=600, context=1000)], [Arrival(0.0, "a", 500, 101), Arrival(0.0, "a", 5, 5)])
    assert [outcome.status for outcome in report.outcomes] == ["refused", "answered"]
    assert simulate([even()], at_once(MAX_WAITING + 4, 1, 1)).refused == 4


@pytest.mark.parametrize("routing", ROUTING_POLICIES)
def test_every_routing_policy_spreads_independent_owners(routing: str) -> None:
    arrivals = poisson(400, 20.0, (4, 8), (4, 8), seed=3)
    report = simulate([even()] * 4, arrivals, routing=routing)  # type: ignore[arg-type]
    shares = [sum(outcome.replica == i for outcome in report.outcomes) for i in range(4)]
    assert report.answered == 400
    assert min(shares) > 60


def test_routing_by_owner_finds_the_kept_prefix() -> None:
    arrivals = poisson(200, 2.0, (80, 100), (4, 8), owners=10, shared=64, seed=5)
    reused = {
        routing: sum(outcome.reused for outcome in simulate([even()] * 5, arrivals, routing=routing).outcomes)
        for routing in ROUTING_POLICIES
    }
    assert reused["by-owner"] > 1.1 * reused["round-robin"]


cluster = st.tuples(
    st.integers(1, 3), st.integers(1, 5), st.sampled_from([None, 150, 400]), st.sampled_from(ROUTING_POLICIES)
)


@settings(max_examples=examples(60))
@given(
    cluster,
    st.lists(
        st.tuples(st.floats(0, 5), st.integers(0, 3), st.integers(1, 90), st.integers(1, 40), st.integers(0, 2)),
        min_size=1,
        max_size=25,
    ),
    st.lists(st.tuples(st.floats(0, 20), st.integers(0, 2), st.floats(0, 30)), max_size=4),
    st.booleans(),
)
def test_every_request_ends_and_no_time_is_lost(
    made_of: tuple[int, int, int | None, str],
    asked: list[tuple[float, int, int, int, int]],
    lost: list[tuple[float, int, float]],
    recover: bool,
) -> None:
    count, stages, budget, routing = made_of
    arrivals = [
        Arrival(at, f"owner-{owner}", prompt, answer, min(30, prompt), talk)
        for at, owner, prompt, answer, talk in asked
    ]
    losses = [Failure(at, index % count, index % stages, returns) for at, index, returns in lost]
    coordinator = CoordinatorCost(((1, 0.001), (8, 0.004)), 0.0002, 0.00001, 0.0001)
    cluster = [even(stages, coordinator=coordinator, budget=budget, link=LinkCost(0.001, 1e7))] * count
    after = RecoveryPolicy(1.0, 3.0, recover)
    report = simulate(cluster, arrivals, losses, routing, after)  # type: ignore[arg-type]
    assert simulate(cluster, arrivals, losses, routing, after) == report  # type: ignore[arg-type]
    for arrival, outcome in zip(arrivals, report.outcomes, strict=True):
        assert outcome.status == "answered" or (outcome.status == "failed" and losses and not recover)
        assert outcome.tokens == arrival.answer or outcome.status == "failed"
        if outcome.tokens:
            assert 0 <= outcome.begun_s < outcome.first_s <= outcome.last_s
    for use in report.replicas:
        assert all(0 <= share <= 1 + 1e-9 for share in (*use.stages, use.coordinator)) or losses


def test_a_trace_is_read_and_its_mistakes_are_named() -> None:
    lines = ["at_s,owner,prompt,answer,shared", "0.5,ann,10,20,4", "1.5,bob,30,40,"]
    assert read_trace(lines) == (Arrival(0.5, "ann", 10, 20, 4), Arrival(1.5, "bob", 30, 40))
    with pytest.raises(UsageError, match="columns at_s, owner, prompt, answer"):
        read_trace(["when,owner,prompt,answer"])
    for bad in ("x,ann,1,2", "1,ann,0,2", "-1,ann,1,2", "1,ann,1", "1,ann,1,2,3", "nan,ann,1,2"):
        with pytest.raises(UsageError, match="line 2 of the trace"):
            read_trace(["at_s,owner,prompt,answer", bad])
    with pytest.raises(UsageError, match="line 3 of the trace is not a request: the line has more or fewer values"):
        read_trace(["at_s,prompt,answer,owner", "1,1,2,ann", "1,1,2"])


def test_chance_is_by_seed() -> None:
    assert poisson(50, 2.0, (1, 9), (1, 9), seed=4) == poisson(50, 2.0, (1, 9), (1, 9), seed=4)
    assert poisson(50, 2.0, (1, 9), (1, 9), seed=4) != poisson(50, 2.0, (1, 9), (1, 9), seed=5)
    arrivals = poisson(4000, 2.0, (1, 9), (1, 9))
    assert arrivals[-1].at_s == pytest.approx(2000, rel=0.1)
    lost = failures([2, 3], 100.0, 10.0, 10000.0, seed=1)
    assert lost == failures([2, 3], 100.0, 10.0, 10000.0, seed=1)
    assert len(lost) == pytest.approx(5 * 10000 / 110, rel=0.2)
    assert all(a.at_s <= b.at_s for a, b in itertools.pairwise(lost))


def test_curves_go_on_in_straight_lines() -> None:
    curve = ((2, 1.0), (4, 2.0), (8, 3.0))
    assert [seconds_at(curve, rows) for rows in (1, 2, 3, 4, 6, 8, 14)] == [1.0, 1.0, 1.5, 2.0, 2.5, 3.0, 5.0]
    assert [seconds_at(((4, 2.0),), rows) for rows in (1, 4, 8)] == [2.0, 2.0, 4.0]


def test_a_model_is_shared_out_evenly() -> None:
    part = MODEL.share(0.25)
    assert part.decode_s(8, 0) == pytest.approx(MODEL.decode_s(8, 0) / 4)
    assert part.prefill_s(10, 5) == pytest.approx(MODEL.prefill_s(10, 5) / 4)


@pytest.mark.parametrize(
    "mistake",
    [
        lambda: StageCost((), 0.1),
        lambda: StageCost(((2, 0.1), (1, 0.2)), 0.1),
        lambda: StageCost(((1, math.nan),), 0.1),
        lambda: StageCost(((1, 0.1),), -1.0),
        lambda: LinkCost(0.1, 0.0),
        lambda: LinkCost(math.inf),
        lambda: CoordinatorCost(((1, 0.1),), send_s=math.nan),
        lambda: even(0),
        lambda: even(row_bytes=0),
        lambda: Replica((MODEL,), (LinkCost(0.0),), FREE, 1000),
        lambda: Arrival(0.0, "a", 0, 1),
        lambda: Arrival(0.0, "a", 1, 1, shared=2),
        lambda: Arrival(math.inf, "a", 1, 1),
        lambda: Arrival(0.0, "a", 1, 1, conversation=-1),
        lambda: Arrival(0.0, "a", 1, 1, acceptance=1.5),
        lambda: poisson(1, 0.0, (1, 1), (1, 1)),
        lambda: poisson(1, 1.0, (2, 1), (1, 1)),
        lambda: failures([1], 0.0, 1.0, 1.0),
        lambda: failures([1], 1.0, -9.0, 1.0),
        lambda: failures([1], 1.0, 1.0, math.inf),
        lambda: RecoveryPolicy(detect_s=-1),
        lambda: simulate([], at_once(1, 1, 1)),
        lambda: simulate([even()], []),
        lambda: simulate([even()], at_once(1, 1, 1), [Failure(0.0, 0, 2)]),
        lambda: simulate([even()], at_once(1, 1, 1), [Failure(math.nan, 0, 0)]),
        lambda: simulate([even()], at_once(1, 1, 1), routing="by-luck"),  # type: ignore[arg-type]
    ],
)
def test_what_makes_no_sense_is_said(mistake: object) -> None:
    with pytest.raises(UsageError):
        mistake()  # type: ignore[operator]
