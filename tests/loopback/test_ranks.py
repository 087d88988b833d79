"""Ranks of a tensor-parallel stage over real sockets: one stage to whoever uses it, and one end for all."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq

from edgepp import backend
from edgepp.backend.base import BackendOptions, SequenceFault, StageModel
from edgepp.engine.engine_thread import EngineParts
from edgepp.engine.local_ring import LocalRing
from edgepp.engine.loop import EngineLoop
from edgepp.engine.prompt_lookup import OwnerTexts
from edgepp.engine.request import GenerateOptions, SamplingOptions
from edgepp.errors import ModelError, PeerLost, StageFault
from edgepp.layer_range import LayerRange
from edgepp.model.random_checkpoint import TINY, make_checkpoint
from edgepp.model.weights.checkpoint import Array, Checkpoint
from edgepp.model.weights.weight_digests import weight_digests
from edgepp.stage_process import rank_inbox
from edgepp.stage_process.first_rank import FirstRank
from edgepp.stage_process.rank_group import RankGroup
from edgepp.stage_process.sum_probe import measure_sums
from edgepp.wire.message_codec import encode
from edgepp.wire.messages import max_data_frame_bytes
from edgepp.wire.messages.ranks import CacheOrder, Partial, RankJoined, RankTimings
from edgepp.wire.rank_marks import num_times, packed_times
from edgepp.wire.security import KeyPair
from edgepp.wire.transport import Link
from tests import reference
from tests.builders.checkpoints import Checkpoints
from tests.builders.networks import two_networks
from tests.builders.stages import stage_info
from tests.engines import collect, local_engine
from tests.live_ranks import GROUP, LiveRanks, first_rank
from tests.waiting import PATIENCE_S, eventually

SHAPE = replace(TINY, heads=8, kv_heads=4, bits=4, group_size=32, dtype="float16", hidden=128)
WIDTH = SHAPE.hidden


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Checkpoints(tmp_path_factory.mktemp("ranks"))(SHAPE)


def hidden_of(path: Path, rows: int) -> Array:
    checkpoint = Checkpoint.open(path)
    ids = np.random.default_rng(5).integers(0, checkpoint.vocab_size, rows)
    return backend.choose("onnx", checkpoint).load_embedding_and_head(checkpoint, BackendOptions()).embed(list(ids))


def whole_stage(path: Path) -> StageModel:
    checkpoint = Checkpoint.open(path)
    options = BackendOptions(exact=True)
    return backend.choose("onnx", checkpoint).load_stage(checkpoint, LayerRange(0, checkpoint.num_layers), options)


@pytest.mark.parametrize("weights", [(1, 1), (2, 1, 1)], ids=str)
@pytest.mark.parametrize("links", ["plain", "encrypted", "local"])
def test_ranks_are_one_stage(weights: tuple[int, ...], links: str, path: Path) -> None:
    hidden, whole = hidden_of(path, 60), whole_stage(path)
    keys = KeyPair.generate() if links == "encrypted" else None
    with first_rank(path, weights, keys=keys, local=links == "local") as (stage, _):

        def both(method: str, *arguments: Any) -> None:
            expected, found = getattr(whole, method)(*arguments), getattr(stage, method)(*arguments)
            if expected is not None:
                np.testing.assert_allclose(found, expected, atol=1e-4)

        both("open", 1, 100)
        both("extend", 1, hidden[:20])
        both("fork", 1, 2, 10, 100)
        both("truncate", 1, 15)
        both("resize", 2, 40)
        both("decode", [2, 1], hidden[30:32])
        both("decode", [1], hidden[32:33])
        both("extend", 2, hidden[40:60])
        both("free", 1)
        assert stage.length(2) == whole.length(2) == 31
        assert stage.kv_layout == whole.kv_layout
        assert stage.rewinds


def greedy(engine: EngineLoop, prompt: list[int], **sampling: Any) -> list[int]:
    return collect(engine.submit(prompt, GenerateOptions(max_tokens=24, sampling=SamplingOptions(**sampling))))


def engine_over(stage: FirstRank, path: Path) -> EngineLoop:
    checkpoint = Checkpoint.open(path)

    def open_parts() -> EngineParts:
        info = stage_info(
            layers=stage.layers, context=checkpoint.context, rewinds=stage.rewinds, has_head=stage.has_head
        )
        chosen = backend.choose("onnx", checkpoint)
        ends = chosen.load_embedding_and_head(checkpoint, BackendOptions(exact=True), head_later=stage.has_head)
        return EngineParts(LocalRing([(info, stage)]), ends, OwnerTexts().begin)

    return EngineLoop(open_parts, eos=frozenset())


@pytest.mark.parametrize("name", ["onnx", "mlx"])
def test_the_engine_over_ranks_gives_the_tokens_of_one_process(name: str, path: Path) -> None:
    checkpoint = Checkpoint.open(path)
    prompt = [int(i) for i in np.random.default_rng(2).integers(0, checkpoint.vocab_size, 40)]
    prompts = [prompt, prompt[:30] + prompt[:9], prompt * 3]
    with first_rank(path, (1, 1)) if name == "onnx" else first_rank(path, (1, 1), name) as (stage, _):
        with engine_over(stage, path) as engine:
            for one in (*prompts, *prompts):  # the second time from what the stages still hold
                assert greedy(engine, one) == reference.greedy(path, one, 24)
            requests = [engine.submit(one, GenerateOptions(max_tokens=24)) for one in prompts]
            assert [collect(one) for one in requests] == [reference.greedy(path, one, 24) for one in prompts]
            seeded = greedy(engine, prompt, temperature=0.8, seed=4)
            likeliest = engine.submit(prompt, GenerateOptions(max_tokens=24, sampling=SamplingOptions(logprobs=5)))
            assert collect(likeliest) == reference.greedy(path, prompt, 24)
        with local_engine(path, [LayerRange(0, 4)], ["onnx"]) as alone:
            assert seeded == greedy(alone, prompt, temperature=0.8, seed=4)
            expected = alone.submit(prompt, GenerateOptions(max_tokens=24, sampling=SamplingOptions(logprobs=5)))
            collect(expected)
        for found, other in zip(likeliest.sampled, expected.sampled, strict=True):
            assert [token for token, _ in found.top] == [token for token, _ in other.top]
            np.testing.assert_allclose([p for _, p in found.top], [p for _, p in other.top], atol=1e-4)
            assert found.logprob == found.top[0][1]


KINDS = [
    {},
    {"logprobs": 3},
    {"temperature": 0.9, "top_p": 0.8, "seed": 3},
    {"logit_bias": ((5, 4.0), (7, -3.0))},
    {"repetition_penalty": 1.3},
    {"frequency_penalty": 0.5},
]


def test_requests_of_every_kind_together_get_what_each_gets_from_one_process(path: Path) -> None:
    prompt = [int(i) for i in np.random.default_rng(2).integers(0, Checkpoint.open(path).vocab_size, 20)]

    def answers(engine: EngineLoop) -> list[list[int]]:
        asked = [
            engine.submit(prompt, GenerateOptions(max_tokens=16, sampling=SamplingOptions(**kind)))  # type: ignore[arg-type]
            for kind in KINDS
        ]
        return [collect(one) for one in asked]

    with first_rank(path, (2, 1, 1)) as (stage, _), engine_over(stage, path) as engine:
        found = answers(engine)
    with local_engine(path, [LayerRange(0, 4)], ["onnx"]) as alone:
        assert found == answers(alone)


def test_the_ranks_compute_the_head_and_the_coordinator_does_not(path: Path) -> None:
    prompt = list(range(10))
    with first_rank(path, (1, 1)) as (stage, live), engine_over(stage, path) as engine:
        assert greedy(engine, prompt) == reference.greedy(path, prompt, 24)
        assert engine._loop._ends._head is None  # type: ignore[attr-defined]

        def broken(*_: Any) -> Any:
            raise StageFault("no head today")

        assert stage._head is not None
        stage._head._head.logits = broken  # type: ignore[method-assign]
        with pytest.raises(StageFault, match="no head today"):
            greedy(engine, prompt)
        del stage._head._head.logits
        assert greedy(engine, prompt) == reference.greedy(path, prompt, 24)
        assert not live.errors


@pytest.mark.parametrize("method", ["candidates", "logits"])
def test_a_part_of_the_head_that_is_not_the_one_awaited_ends_the_group(method: str) -> None:
    live, group = pair()
    rows, width = (1, 3) if method == "candidates" else (1, 64)
    try:
        group.begin_step(1)
        for part in (np.zeros((1, 99), np.float32), np.zeros((2, width), np.float32)):
            live.groups[1].begin_step(0)
            live.groups[1].send_head_part(part)  # of a step that failed
        live.groups[1].begin_step(1)
        live.groups[1].send_head_part(np.zeros((rows, width + 1), np.float32))
        with pytest.raises(PeerLost, match="rank 1 of the stage broke the protocol"):
            group.head_part_of(1, rows, width)
    finally:
        live.close()


def test_what_rank_0_refuses_changes_no_rank(path: Path) -> None:
    hidden, whole = hidden_of(path, 20), whole_stage(path)
    with first_rank(path, (1, 1)) as (stage, live):
        stage.open(1, 12)
        stage.extend(1, hidden[:10])
        with pytest.raises(SequenceFault):
            stage.extend(1, hidden[:5])
        with pytest.raises(SequenceFault):
            stage.decode([1, 9], hidden[:2])
        with pytest.raises(SequenceFault):
            stage.fork(1, 2, 11, 20)
        for wrong in (hidden[:1, :8], hidden[:0], hidden[0]):
            with pytest.raises(StageFault):
                stage.extend(1, wrong)
        with pytest.raises(StageFault):
            stage.decode([1, 1], hidden[:2])
        with pytest.raises(StageFault):
            stage.open(3, 1 << 30)
        with pytest.raises(StageFault):
            stage.resize(1, 5)
        with pytest.raises(StageFault):
            stage.import_kv(1, LayerRange(0, 1), 0, 1, [])
        with pytest.raises(StageFault):
            stage.export_kv(1, LayerRange(0, 1), 0, 11)
        with pytest.raises(StageFault):
            stage.set_length(1, 11)
        whole.open(1, 12)
        whole.extend(1, hidden[:10])
        np.testing.assert_allclose(stage.extend(1, hidden[10:12]), whole.extend(1, hidden[10:12]), atol=1e-4)
        assert not live.errors


@pytest.mark.parametrize("method", ["open", "resize", "fork"])
def test_a_rank_without_memory_ends_the_sequence_on_all(
    method: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden = hidden_of(path, 20)
    with first_rank(path, (1, 1)) as (stage, _):
        mine = stage._model
        theirs = type(mine)

        def refuse(model: StageModel, *arguments: Any) -> None:
            if model is not mine:
                raise StageFault("memory is short")
            original(model, *arguments)

        stage.open(1, 30)
        stage.extend(1, hidden)
        original: Callable[..., None] = getattr(theirs, method)
        monkeypatch.setattr(theirs, method, refuse)
        with pytest.raises(StageFault, match="rank 1: memory is short"):
            {"open": lambda: stage.open(2, 9), "resize": lambda: stage.resize(1, 40),
             "fork": lambda: stage.fork(1, 2, 5, 9)}[method]()  # fmt: skip
        monkeypatch.undo()
        stage.open(1, 30)
        assert stage.extend(1, hidden[:5]).shape == (5, WIDTH)


@pytest.mark.parametrize("local", [False, True], ids=["zeromq", "local"])
def test_a_step_that_another_rank_cannot_compute_fails_here(local: bool, path: Path) -> None:
    hidden = hidden_of(path, 20)
    with first_rank(path, (1, 1, 2), local=local) as (stage, live):
        stage.open(1, 30)
        stage._model.extend = broken(stage, 2)  # type: ignore[method-assign]
        with pytest.raises(ZeroDivisionError):
            stage.extend(1, hidden)
        del stage._model.extend
        stage.free(1)
        stage.open(1, 30)
        assert stage.extend(1, hidden).shape == (20, WIDTH)
        stage._model.truncate(1, 10)  # rank 0 alone: the others notice that they hold other positions
        with pytest.raises(StageFault, match=r"hold \(20,\) positions, and \(10,\) in rank 0"):
            stage.extend(1, hidden[:1])
        stage.truncate(1, 5)
        assert stage.extend(1, hidden[:5]).shape == (5, WIDTH)
        assert not live.errors


def broken(stage: FirstRank, after: int) -> Callable[[int, Array], Array]:
    """A step that fails after two sums."""

    def extend(_sequence: int, hidden: Array) -> Array:
        for _ in range(after):
            stage._group.reduce(hidden, np.empty_like(hidden))
        raise ZeroDivisionError("a bug of ours")

    return extend


def test_a_rank_that_ends_ends_the_others(path: Path) -> None:
    hidden = hidden_of(path, 20)
    lost: list[PeerLost] = []
    with first_rank(path, (1, 1), lost=lost) as (stage, live):
        stage.open(1, 30)
        live.stop_following()
        with pytest.raises(PeerLost, match="rank 1"):
            eventually("the loss shows", lambda: stage.extend(1, hidden[:1]) is None)
        assert lost
    with first_rank(path, (1, 1), lost=lost) as (_, live):
        live.groups[0].close()
        eventually("rank 1 has ended", lambda: live.errors)
        assert "rank 0" in str(live.errors[0])


def pair() -> tuple[LiveRanks, RankGroup]:
    """Two ranks, of which the test is rank 1."""
    live = LiveRanks(2, WIDTH)
    live.connect()
    return live, live.groups[0]


@pytest.mark.parametrize(
    "frames",
    [
        [encode(Partial(1, 1, 2, WIDTH)), bytes(8 * WIDTH)],
        [encode(Partial(1, 0, 1, WIDTH)), bytes(4 * WIDTH)],
        [encode(Partial(2, 0, 2, WIDTH)), bytes(8 * WIDTH)],
        [encode(Partial(1, 0, 2, WIDTH)), bytes(8 * WIDTH - 4)],
        [encode(Partial(1, 0, 2, WIDTH))],
        [encode(RankJoined(GROUP, 1))],
        [b"no header"],
    ],
    ids=["number", "rows", "step", "short", "no frame", "other message", "no header"],
)
def test_a_partial_sum_that_is_not_the_next_one_ends_the_group(frames: list[bytes]) -> None:
    live, group = pair()
    try:
        group.begin_step(1)
        live.groups[1].send_all(frames)
        with pytest.raises(PeerLost, match="rank 1 of the stage broke the protocol"):
            group.reduce(np.ones((2, WIDTH), np.float32), np.empty((2, WIDTH), np.float32))
    finally:
        live.close()


@pytest.mark.parametrize("timed", [0, 1, 2])
@pytest.mark.parametrize(
    "told",
    [
        [RankTimings(1, 0, bytes(16))],
        [RankTimings(2, 0, packed_times([0, 1])[1])],
        [RankTimings(1, 0, packed_times([0, 1])[1])] * 2,
        [RankTimings(1, 0, bytes(2048))],
        [RankTimings(1, 0, b"")],
    ],
    ids=["long", "step", "twice", "longest", "empty"],
)
def test_times_that_were_not_asked_for_end_the_group(timed: int, told: list[RankTimings]) -> None:
    live, group = pair()
    try:
        group.begin_step(1, timed)
        for one in told:
            live.groups[1].send_all([encode(one)])
        live.groups[1].send_all([encode(Partial(1, 0, 2, WIDTH)), bytes(8 * WIDTH)])
        with pytest.raises(PeerLost, match="rank 1 of the stage broke the protocol"):
            group.reduce(np.ones((2, WIDTH), np.float32), np.empty((2, WIDTH), np.float32))
    finally:
        live.close()


@pytest.mark.parametrize("local", [False, True])
def test_each_rank_tells_its_times_in_a_timed_step_alone(local: bool, path: Path) -> None:
    with first_rank(path, (2, 1, 1), local=local) as (stage, _):
        stage.open(1, 64)
        for stage.timed in (False, True, True, False):
            stage.extend(1, hidden_of(path, 2))
            assert [num_times(times) for _, times in stage.times] == ([16, 15, 15] if stage.timed else [])
        with pytest.raises(StageFault):
            stage.extend(2, hidden_of(path, 2))
        stage.timed = True
        stage.extend(1, hidden_of(path, 2))
        assert len(stage.times) == 3


def test_a_rank_that_sends_without_end_while_another_is_awaited_ends_the_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_inbox, "MAX_WAITING_BYTES", 1 << 14)
    live = LiveRanks(3, WIDTH)
    live.connect()
    try:
        for number in range(40):
            live.groups[1].send(0, [encode(Partial(1, number, 1, WIDTH)), bytes(4 * WIDTH)])
        with pytest.raises(PeerLost, match="rank 1 of the stage broke the protocol: it sends more than is asked for"):
            live.groups[0].next_of(2)
    finally:
        live.close()


def test_orders_of_another_than_rank_0_are_refused() -> None:
    live, group = pair()
    try:
        live.groups[1].send_all([encode(CacheOrder("free", 1, 0, 0, 0))])
        with pytest.raises(PeerLost, match="CacheOrder message of a rank"):
            group.next_of(1)
    finally:
        live.close()


def test_sums_are_in_the_order_of_the_ranks() -> None:
    live, group = pair()
    try:
        values = [np.full((1, WIDTH), value, np.float32) for value in (1e8, -1e8 + 8)]
        totals = [np.empty((1, WIDTH), np.float32) for _ in values]
        for one in live.groups:
            one.begin_step(1)
        live.groups[1].send_all([encode(Partial(1, 0, 1, WIDTH)), values[1].tobytes()])
        group.reduce(values[0], totals[0])
        np.testing.assert_array_equal(totals[0], values[0] + values[1])
    finally:
        live.close()


def test_both_ranks_of_a_measurement_end_after_the_same_sum_when_one_has_had_enough() -> None:
    live, group = pair()
    try:
        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(measure_sums, live.groups[1], WIDTH, enough_s=3600.0)
            found = measure_sums(group, WIDTH, enough_s=0.0)
            assert min(found.values()) > 0
            assert min(other.result(PATIENCE_S).values()) > 0
    finally:
        live.close()


def test_a_stranger_does_not_join() -> None:
    live = LiveRanks(2, WIDTH)
    strangers = [Link(live.context, live.addresses[0], max_data_frame_bytes(WIDTH)) for _ in range(3)]
    try:
        for link, message in zip(strangers, (RankJoined(GROUP + 1, 1), RankJoined(GROUP, 5), Partial(1, 0, 1, WIDTH)),
                                 strict=True):  # fmt: skip
            assert link.send([encode(message)], 5.0)
        for raw in (b"", b"\xc1", bytes(5000)):
            assert strangers[0].send([raw], 5.0)
        assert strangers[1].send([b"x"] * 9, 5.0)
        live.connect()
        late = Link(live.context, live.addresses[0], max_data_frame_bytes(WIDTH))
        strangers.append(late)
        assert late.send([encode(RankJoined(GROUP, 1))], 5.0)
        assert late.send([encode(Partial(1, 0, 1, WIDTH)), bytes(4 * WIDTH)], 5.0)
        live.groups[0].begin_step(1)
        live.groups[1].send_all([encode(Partial(1, 0, 1, WIDTH)), np.ones((1, WIDTH), np.float32).tobytes()])
        total = np.empty((1, WIDTH), np.float32)
        live.groups[0].reduce(np.ones((1, WIDTH), np.float32), total)
        np.testing.assert_array_equal(total, np.full((1, WIDTH), 2, np.float32))
    finally:
        for link in strangers:
            link.close()
        live.close()


@pytest.mark.skipif(sys.platform != "linux", reason="127.0.0.2 is a loopback address on Linux only")
def test_ranks_with_other_weights_do_not_begin(path: Path, tmp_path: Path) -> None:
    other = make_checkpoint(tmp_path / "other", SHAPE, seed=7)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    groups = [
        RankGroup(context, GROUP, rank, 2, WIDTH, folder=str(folder), weights=weight_digests(Checkpoint.open(folder)))
        for rank, folder in enumerate((path, other))
    ]
    try:
        with ThreadPoolExecutor(2) as pool:
            joined = [pool.submit(one.connect, [group.address for group in groups]) for one in groups]
            for rank, (mine, one) in enumerate(zip(joined, (other, path), strict=True)):
                with pytest.raises(ModelError, match=f"rank {1 - rank} .* layers 0-3 and embedding or head .*{one}"):
                    mine.result(PATIENCE_S)
    finally:
        for group in groups:
            group.close()
        context.term()


def test_ranks_on_two_networks_take_the_fastest(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = two_networks(monkeypatch)
    live = LiveRanks(2, WIDTH, KeyPair.generate(), host="0.0.0.0")  # noqa: S104 - both addresses of loopback
    live.connect("127.0.0.1", "127.0.0.2")
    try:
        for group in live.groups:
            [link] = group._links.values()
            there = {at: one.short_s + one.long_s for at, one in measured.items() if at.port == link.address.port}
            assert len(there) == 2
            assert there[link.address] == min(there.values())
            group.begin_step(1)
            group.send_all([encode(Partial(1, 0, 1, WIDTH)), bytes(4 * WIDTH)])
        assert [type(group.next_of(1 - rank)[0]) for rank, group in enumerate(live.groups)] == [Partial, Partial]
    finally:
        live.close()
