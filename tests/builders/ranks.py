"""Ranks of a tensor-parallel stage in threads of the test, which add up through memory in place of sockets."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from edgepp import backend
from edgepp.backend.base import BackendOptions, StageModel
from edgepp.layer_range import LayerRange
from edgepp.model.tensor_shares import share_out
from edgepp.model.weights.checkpoint import Array, Checkpoint
from edgepp.model.weights.sharded_checkpoint import ShardedCheckpoint

_PATIENCE_S = 120.0


class MemoryReductions:
    """A reduction for each of ``ranks`` threads."""

    def __init__(self, ranks: int) -> None:
        self._partials: list[Array] = [np.empty(0)] * ranks
        self._barrier = threading.Barrier(ranks)

    def of(self, rank: int) -> Callable[[Array, Array], None]:
        """The reduction that the thread of ``rank`` calls."""

        def reduce(partial: Array, total: Array) -> None:
            self._partials[rank] = partial
            self._barrier.wait(_PATIENCE_S)
            total[:] = self._partials[0]
            for other in self._partials[1:]:
                total += other
            self._barrier.wait(_PATIENCE_S)

        return reduce


class Ranks:
    """All ranks of one stage, each in a thread of its own; a method of the models is called on all at once."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        layers: LayerRange,
        weights: Sequence[int],
        backend_name: str,
        options: BackendOptions,
    ) -> None:
        self._pools = [ThreadPoolExecutor(1, f"rank-{rank}") for rank in range(len(weights))]
        reductions = MemoryReductions(len(weights))

        def load(rank: int) -> StageModel:
            part = ShardedCheckpoint.of(checkpoint, share_out(checkpoint.settings, weights)[rank])
            chosen = backend.choose(backend_name, checkpoint)
            return chosen.load_rank(part, layers, options, reductions.of(rank))

        self._models: list[StageModel] = self._on_all(load)

    def call(self, method: str, *arguments: Any) -> Any:
        """The result of ``method`` of all ranks, which must be the same for all."""
        results = self._on_all(lambda rank: getattr(self._models[rank], method)(*arguments))
        for other in results[1:]:
            np.testing.assert_array_equal(results[0], other)
        return results[0]

    def kv_bytes(self) -> list[int]:
        """Bytes of keys and values of each rank."""
        return self._on_all(lambda rank: self._models[rank].kv_bytes)

    def close(self) -> None:
        """End the threads."""
        self._models.clear()
        for pool in self._pools:
            pool.shutdown()

    def _on_all(self, work: Callable[[int], Any]) -> list[Any]:
        futures = [pool.submit(work, rank) for rank, pool in enumerate(self._pools)]
        return [future.result(_PATIENCE_S) for future in futures]
