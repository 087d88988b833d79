"""Parts of the time of a token in a tensor-parallel stage, and the cost of one sum over two ranks by itself.

``token_parts`` makes this process rank 0 of a stage whose other ranks are stage processes, and times its reductions.
As a program, the module is the other rank of ``exchange_us``, which only adds.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import zmq

from edgepp import backend
from edgepp.backend.base import BackendOptions, StageModel
from edgepp.child_process import python_command
from edgepp.errors import PeerLost
from edgepp.layer_range import LayerRange
from edgepp.model.tensor_shares import share_out
from edgepp.model.weights.checkpoint import Array, Checkpoint
from edgepp.model.weights.sharded_checkpoint import ShardedCheckpoint
from edgepp.node.stage_handle import StageProcess
from edgepp.node.stage_ranks import socket_pairs
from edgepp.stage_process.compute_policy import ComputePolicy
from edgepp.stage_process.config import RankConfig, StageSettings
from edgepp.stage_process.first_rank import FirstRank
from edgepp.stage_process.local_sums import LocalSums, adopted
from edgepp.stage_process.output_head import WantedResult
from edgepp.stage_process.rank_group import RankGroup
from edgepp.stage_process.split_head import SplitHead
from edgepp.wire.address import Address
from edgepp.wire.security import Gate, KeyPair

LINKS = ("local", "plain", "encrypted")
"""Links of two ranks: a pair of sockets on one machine, or ZeroMQ without and with encryption."""
_GROUP = 1
_WARM_UP = 0.1  # part of the sums that are not counted
_LIKELIEST = WantedResult(1, "candidates", 1)


def _now() -> Array:
    """Seconds on the wall and of this thread's processor time."""
    return np.array([time.perf_counter(), time.thread_time()])


class _TimedReduction:
    """The reduction of a group, and the seconds that calls took, by both clocks."""

    def __init__(self, group: RankGroup) -> None:
        self._group = group
        self.seconds = np.zeros(2)

    def __call__(self, partial: Array, total: Array, /) -> None:
        start_s = _now()
        self._group.reduce(partial, total)
        self.seconds += _now() - start_s


def token_parts(
    folder: Path, weights: Sequence[int], backend_name: str, threads: int, tokens: int, rounds: int
) -> dict[str, dict[str, float]]:
    """Median milliseconds of a token, as ``ms`` on the wall and ``cpu_ms`` of the thread that computes.

    Of rank 0: ``halves`` of layers; ``reductions`` with the wait for other ranks; ``head``, its part, the wait for the
    other parts, and merging. Of one process: ``single_layers`` and ``single_head``. Each of ``rounds`` decodes
    ``tokens`` tokens of a new sequence; every rank, and the one process, computes with ``threads`` threads.

    Raises:
        EdgeppError: a rank does not start.
    """
    checkpoint = Checkpoint.open(folder)
    layers = LayerRange(0, checkpoint.num_layers)
    chosen = backend.choose(backend_name, checkpoint)
    options = BackendOptions(threads=threads)
    ends = chosen.load_embedding_and_head(checkpoint, options)
    hidden = ends.embed([1])
    whole = chosen.load_stage(checkpoint, layers, options)
    alone = [_decode(whole, hidden, tokens, ends.logits) for _ in range(rounds + 1)][1:]
    del whole
    with _group_of_processes(checkpoint, weights, backend_name, threads) as group:
        reduction = _TimedReduction(group)
        shares = share_out(checkpoint.settings, weights)
        mine = ShardedCheckpoint.of(checkpoint, shares[0])
        head = SplitHead(chosen.load_head(mine, options), [share.vocabulary for share in shares])
        part = chosen.load_rank(mine, layers, options, reduction)
        stage = FirstRank(part, group, [len(share.kv_heads) for share in shares], _raise, head)
        found = []
        for _ in range(rounds + 1):
            reduction.seconds[:] = 0
            layers_s, head_s = _decode(stage, hidden, tokens, stage.result, lambda: stage.expect(_LIKELIEST))
            found.append((layers_s - reduction.seconds / tokens, reduction.seconds / tokens, head_s))
        stage.release_others()
    names = ("halves", "reductions", "head", "single_layers", "single_head")
    medians = [*np.median(found[1:], axis=0), *np.median(alone, axis=0)]
    return {
        kind: {name: float(seconds[clock]) * 1e3 for name, seconds in zip(names, medians, strict=True)}
        for clock, kind in enumerate(("ms", "cpu_ms"))
    }


def _decode(
    stage: StageModel,
    hidden: Array,
    tokens: int,
    head: Callable[[Array], Array],
    prepare: Callable[[], None] = lambda: None,
) -> tuple[Array, Array]:
    """Seconds of a token in the layers and in the head, each by both clocks; ``prepare`` is called before each step."""
    stage.open(1, tokens + 1)
    layers_s, head_s = np.zeros(2), np.zeros(2)
    for _ in range(tokens):
        start_s = _now()
        prepare()
        computed = stage.extend(1, hidden)
        done_s = _now()
        head(computed)
        layers_s += done_s - start_s
        head_s += _now() - done_s
    stage.free(1)
    return layers_s / tokens, head_s / tokens


def _raise(lost: PeerLost) -> None:
    raise lost


@contextmanager
def _group_of_processes(
    checkpoint: Checkpoint, weights: Sequence[int], backend_name: str, threads: int
) -> Iterator[RankGroup]:
    """This process as rank 0, and a stage process for every other rank, as ``StageRanks`` starts them."""
    folder, layers = checkpoint.path, LayerRange(0, checkpoint.num_layers)
    policy = ComputePolicy.shared(threads, len(weights))
    settings = StageSettings(policy, backend_name)
    children: list[StageProcess] = []
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    gate = Gate(context)
    with ExitStack() as ours:
        first, *others = socket_pairs(len(weights), ours)
        local = _local_sums(first, awake=policy.awake)
        for rank, descriptors in enumerate(others, 1):
            mine = RankConfig(_GROUP, rank, tuple(weights), descriptors)
            children.append(StageProcess(settings.config(folder, str(folder), layers, rank=mine, head=True)))
    width, vocabulary = checkpoint.hidden_size, checkpoint.vocab_size
    group = RankGroup(context, _GROUP, 0, len(weights), width, awake=policy.awake, vocabulary=vocabulary)
    group.add_locally(local)
    try:
        addresses = [str(group.address), *(child.wait_rank() for child in children)]
        for child in children:
            child.join_ranks(addresses)
        group.connect([Address.parse(address) for address in addresses])
        yield group
    finally:
        for child in children:
            child.stop()
        group.close()
        gate.close()
        context.term()


def _local_sums(descriptors: Sequence[int], *, awake: bool) -> LocalSums:
    """The sums over copies of these descriptors, one for each rank, and -1 for this one."""
    return LocalSums(adopted({rank: os.dup(one) for rank, one in enumerate(descriptors) if one >= 0}), awake=awake)


def exchange_us(shapes: Mapping[tuple[int, int], int], links: str) -> dict[str, dict[str, float]]:
    """Microseconds of one sum over two ranks that do nothing else, by shape (rows, width) as ``1x576``.

    ``shapes`` gives the number of sums of each shape, and ``links`` is one of ``LINKS``.

    Raises:
        EdgeppError: the other process does not answer.
    """
    keys = KeyPair.generate() if links == "encrypted" else None
    with ExitStack() as ours:
        mine, theirs = socket_pairs(2, ours) if links == "local" else ((), ())
        local = _local_sums(mine, awake=True) if mine else None
        child = subprocess.Popen(
            python_command("bench.toolkit.rank_parts"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=[one for one in theirs if one >= 0],
        )
    try:
        assert child.stdin is not None
        assert child.stdout is not None
        order = {
            "secret": keys.secret if keys else "",
            "shapes": [[*shape, count] for shape, count in shapes.items()],
            "descriptors": theirs,
        }
        with _adding_group(0, order, local) as group:
            child.stdin.write(json.dumps(order) + "\n" + str(group.address) + "\n")
            child.stdin.flush()
            group.connect([group.address, Address.parse(child.stdout.readline().strip())])
            taken = _add(group, order)
    finally:
        child.kill()
        child.communicate()
    return {
        f"{rows}x{width}": {"median": statistics.median(one) * 1e6, "min": min(one) * 1e6}
        for (rows, width), one in zip(shapes, taken, strict=True)
    }


@contextmanager
def _adding_group(rank: int, order: Mapping[str, Any], local: LocalSums | None) -> Iterator[RankGroup]:
    keys = KeyPair.of_secret(order["secret"]) if order["secret"] else None
    width = max(width for _, width, _ in order["shapes"])
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    gate = Gate(context)
    gate.admit([keys.public] if keys else [])
    group = RankGroup(context, _GROUP, rank, 2, width, keys=keys, awake=True)
    if local is not None:
        group.add_locally(local)
    try:
        yield group
    finally:
        group.close()
        gate.close()
        context.term()


def _add(group: RankGroup, order: Mapping[str, Any]) -> list[list[float]]:
    """Seconds of each sum of each shape, without those of the warm-up."""
    taken = []
    for step, (rows, width, count) in enumerate(order["shapes"], 1):
        partial = np.ones((rows, width), np.float32)
        total = np.empty_like(partial)
        group.begin_step(step)
        times = []
        for _ in range(count):
            start_s = time.perf_counter()
            group.reduce(partial, total)
            times.append(time.perf_counter() - start_s)
        taken.append(times[int(count * _WARM_UP) :])
    return taken


def main() -> None:
    """Add with the process that started this one."""
    order = json.loads(sys.stdin.readline())
    local = _local_sums(order["descriptors"], awake=True) if order["descriptors"] else None
    with _adding_group(1, order, local) as group:
        print(group.address, flush=True)
        group.connect([Address.parse(sys.stdin.readline().strip()), group.address])
        _add(group, order)
        sys.stdin.read()  # the other side may still be receiving


if __name__ == "__main__":
    main()
