"""Ranks of a tensor-parallel stage in threads of the test, over real sockets."""

from __future__ import annotations

import itertools
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import zmq

from edgepp import backend
from edgepp.backend.base import BackendOptions, StageModel
from edgepp.backend.loader import RankModel
from edgepp.errors import PeerLost
from edgepp.layer_range import LayerRange
from edgepp.model.tensor_shares import share_out
from edgepp.model.weights.checkpoint import Checkpoint
from edgepp.model.weights.sharded_checkpoint import ShardedCheckpoint
from edgepp.stage_process.first_rank import FirstRank
from edgepp.stage_process.local_sums import LocalSums
from edgepp.stage_process.other_rank import follow
from edgepp.stage_process.rank_group import RankGroup
from edgepp.stage_process.split_head import SplitHead
from edgepp.wire.mailbox import Mailbox
from edgepp.wire.security import Gate, KeyPair
from tests.waiting import PATIENCE_S

GROUP = 77


class LiveRanks:
    """The groups of all ranks, connected; those of other ranks than rank 0 are driven by threads that follow."""

    def __init__(
        self,
        ranks: int,
        width: int,
        keys: KeyPair | None = None,
        vocabulary: int = 0,
        *,
        local: bool = False,
        host: str = "127.0.0.1",
    ) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._gate = Gate(self._context)
        self._gate.admit([keys.public] if keys else [])
        self.groups = [
            RankGroup(self._context, GROUP, rank, ranks, width, keys=keys, vocabulary=vocabulary, host=host)
            for rank in range(ranks)
        ]
        for group, sums in zip(self.groups, local_sums(ranks) if local else (), strict=local):
            group.add_locally(sums)
        self.addresses = [group.address for group in self.groups]
        self._inboxes: list[Mailbox[None]] = []
        self._threads: list[threading.Thread] = []
        self.errors: list[Exception] = []

    @property
    def context(self) -> zmq.Context[zmq.Socket[bytes]]:
        return self._context

    def connect(self, *hosts: str) -> None:
        """Connect all ranks, which each have the addresses ``hosts``, or the one that they listen on."""
        ports = [address.port for address in self.addresses]
        told = {"ranks": [",".join(f"{host}:{port}" for host in hosts) for port in ports], "keys": ()}
        begin = [
            partial(group.connect_told, told) if hosts else partial(group.connect, self.addresses)
            for group in self.groups
        ]
        threads = [threading.Thread(target=connect) for connect in begin]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)

    def follow(self, rank: int, load: Any) -> None:
        """Let a thread load a rank's model and head with ``load(group)`` and follow rank 0."""
        inbox: Mailbox[None] = Mailbox()

        def run() -> None:
            try:
                model, head = load(self.groups[rank])
                follow(model, self.groups[rank], inbox, head)
            except Exception as error:  # noqa: BLE001 - what ends a rank process
                self.errors.append(error)
            finally:
                self.groups[rank].close()

        thread = threading.Thread(target=run, name=f"rank-{rank}")
        thread.start()
        self._inboxes.append(inbox)
        self._threads.append(thread)

    def stop_following(self) -> None:
        for inbox in self._inboxes:
            inbox.put(None)
        for thread in self._threads:
            thread.join(PATIENCE_S)

    def close(self) -> None:
        self.stop_following()
        for inbox in self._inboxes:
            inbox.close()
        for group in self.groups:
            group.close()
        self._gate.close()
        self._context.term()


def local_sums(ranks: int) -> list[LocalSums]:
    """The pairs of sockets of all ranks."""
    sockets: list[dict[int, socket.socket]] = [{} for _ in range(ranks)]
    for one, other in itertools.combinations(range(ranks), 2):
        sockets[one][other], sockets[other][one] = socket.socketpair()
    return [LocalSums(mine, awake=False) for mine in sockets]


@contextmanager
def first_rank(
    path: Path,
    weights: Sequence[int],
    backend_name: str = "onnx",
    options: BackendOptions | None = None,
    keys: KeyPair | None = None,
    layers: LayerRange | None = None,
    lost: list[PeerLost] | None = None,
    *,
    local: bool = False,
) -> Iterator[tuple[FirstRank, LiveRanks]]:
    """Rank 0 of a stage of all layers, in this thread, and all ranks; ``lost`` gets what would end the process."""
    checkpoint = Checkpoint.open(path)
    shares = share_out(checkpoint.settings, weights)
    chosen = backend.choose(backend_name, checkpoint)
    part = layers or LayerRange(0, checkpoint.num_layers)
    options = options or BackendOptions(exact=True)

    def load(group: RankGroup) -> tuple[RankModel, SplitHead]:
        mine = ShardedCheckpoint.of(checkpoint, shares[group.rank])
        head = SplitHead(chosen.load_head(mine, options), [share.vocabulary for share in shares])
        return chosen.load_rank(mine, part, options, group.reduce), head

    live = LiveRanks(len(weights), checkpoint.hidden_size, keys, checkpoint.vocab_size, local=local)
    try:
        live.connect()
        for rank in range(1, len(weights)):
            live.follow(rank, load)
        model, head = load(live.groups[0])
        kv_heads = [len(share.kv_heads) for share in shares]
        yield FirstRank(model, live.groups[0], kv_heads, [].append if lost is None else lost.append, head), live
    finally:
        live.close()


@contextmanager
def stage_model(
    checkpoint: Checkpoint, layers: LayerRange, backend_name: str, options: BackendOptions, ranks: Sequence[int]
) -> Iterator[StageModel]:
    """A stage in this thread: of one process, or rank 0 of a group where there are several ``ranks``."""
    if len(ranks) == 1:
        yield backend.choose(backend_name, checkpoint).load_stage(checkpoint, layers, options)
        return
    with first_rank(checkpoint.path, ranks, backend_name, options, layers=layers) as (stage, live):
        yield stage
        assert not live.errors
