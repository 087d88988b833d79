"""A stage process that is a rank: joins the other ranks, and loads its part of the layers."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

import zmq

from edgepp.backend.base import BackendOptions, Progress
from edgepp.backend.loader import Backend, RankModel
from edgepp.errors import PeerLost
from edgepp.layer_range import LayerRange
from edgepp.model.tensor_shares import TensorShare
from edgepp.model.weights.checkpoint import Checkpoint
from edgepp.model.weights.sharded_checkpoint import ShardedCheckpoint
from edgepp.model.weights.weight_digests import weight_digests
from edgepp.printable import one_line
from edgepp.stage_process.config import RankConfig, StageConfig
from edgepp.stage_process.greeting_reply import MAX_FOLDER
from edgepp.stage_process.local_sums import LocalSums, adopted
from edgepp.stage_process.rank_group import RankGroup
from edgepp.stage_process.reports import report
from edgepp.stage_process.split_head import SplitHead
from edgepp.wire.address import Address
from edgepp.wire.security import Gate


def join_ranks(
    config: StageConfig, rank: RankConfig, checkpoint: Checkpoint, context: zmq.Context[zmq.Socket[bytes]]
) -> RankGroup:
    """Report where this rank listens, read from standard input where all ranks do, and connect to them.

    Raises:
        PeerLost: the other ranks have not connected in time, or the parent has ended.
        ModelError: another rank has other weights; or a file cannot be read.
    """
    group = RankGroup(
        context,
        rank.group,
        rank.rank,
        len(rank.weights),
        checkpoint.hidden_size,
        host=rank.host or Address.parse(config.listen).host,
        keys=config.keys,
        awake=config.policy.awake,
        vocabulary=checkpoint.vocab_size if config.head else 0,
        folder=one_line(config.path, MAX_FOLDER),
        weights=weight_digests(checkpoint),
    )
    if rank.descriptors:
        descriptors = {other: found for other, found in enumerate(rank.descriptors) if other != rank.rank}
        group.add_locally(LocalSums(adopted(descriptors), awake=config.policy.awake))
    report("rank", address=str(group.address))
    group.connect_told(_read_ranks(config, Gate.of(context)))
    return group


def _read_ranks(config: StageConfig, gate: Gate | None) -> dict[str, Any]:
    """The parent's line about all ranks; the keys of lines before it are admitted.

    Raises:
        PeerLost: the parent has ended.
    """
    while line := sys.stdin.readline():
        told: dict[str, Any] = json.loads(line)
        if "ranks" in told:
            return told
        if gate is not None:
            gate.admit(config.admitted(told["admit"]))
    raise PeerLost("the parent of the stage process has ended")


def load_rank(
    chosen: Backend,
    checkpoint: Checkpoint,
    layers: LayerRange,
    options: BackendOptions,
    shares: Sequence[TensorShare],
    group: RankGroup,
    progress: Progress,
    *,
    with_head: bool,
) -> tuple[RankModel, SplitHead | None]:
    """Load this rank's part of ``layers``, and ``with_head`` its part of the output head; ``shares`` are of all ranks.

    Raises:
        ModelError: the checkpoint lacks tensors, or the backend cannot run the family.
    """
    mine = ShardedCheckpoint.of(checkpoint, shares[group.rank])
    head = None
    if with_head:
        head = SplitHead(chosen.load_head(mine, options), [share.vocabulary for share in shares])
    return chosen.load_rank(mine, layers, options, group.reduce, progress), head
