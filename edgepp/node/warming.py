"""Warm layers: layers that this node may run later are fetched and read once, so that a load finds them in memory.

The bytes stay in the page cache of the system, which gives them up when programs need the memory.
"""

from __future__ import annotations

import logging
import os
import platform
import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from edgepp.errors import EdgeppError
from edgepp.layer_range import LayerRange
from edgepp.model.bounded_files import open_regular
from edgepp.model.fetch import fetch
from edgepp.model.weights.byte_ranges import cut, total, union
from edgepp.model.weights.checkpoint import Checkpoint
from edgepp.model.weights.model_parts import ModelParts
from edgepp.node.memory import free_memory
from edgepp.wire.messages.nodes import Warm

log = logging.getLogger("edgepp.node")

_PIECE_BYTES = 4 << 20
"""Bytes read between two looks whether a load has begun."""
_LOOK_S = 0.2
_CLOSE_S = 2.0
"""How long closing waits for a fetch, which may wait for a server of the hub."""


class _PausedError(EdgeppError):
    """A load has begun, another order has arrived, or the node is closing."""


class LayerWarmer(threading.Thread):
    """Follows the newest ``Warm``, with low priority, and never while a stage of the node loads."""

    def __init__(self, is_loading: Callable[[], bool]) -> None:
        """``is_loading`` says whether a stage of the node loads now."""
        super().__init__(name="layer-warmer", daemon=True)
        self._is_loading = is_loading
        self._orders: queue.SimpleQueue[Warm | None] = queue.SimpleQueue()
        self._newest: Warm | None = None
        self._closing = threading.Event()

    def warm(self, order: Warm) -> None:
        """Warm the layers of ``order`` instead of those ordered before. Safe from any thread."""
        if order != self._newest:
            self._newest = order
            self._orders.put(order)

    def close(self) -> None:
        """End the thread."""
        self._closing.set()
        self._orders.put(None)
        self.join(_CLOSE_S)

    def run(self) -> None:
        """Follow the orders until closed."""
        if platform.system() == "Linux":  # where a thread has a priority of its own
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        while (order := self._orders.get()) is not None:
            try:
                self._follow(order)
            except Exception:
                log.exception("layers %d-%d of %s were not warmed", order.start, order.stop - 1, order.model)

    def _follow(self, order: Warm) -> None:
        layers = LayerRange(order.start, order.stop)
        while order is self._newest and not self._closing.is_set():
            if self._is_loading():
                self._closing.wait(_LOOK_S)
                continue
            try:
                path = fetch(order.model, ModelParts(layers=layers), lambda *_: self._check(order))
                log.info("layers %s of %s: %s", layers, order.model, self._read(order, path, layers))
            except _PausedError:
                continue
            except (EdgeppError, OSError) as error:
                log.info("layers %s of %s were not warmed: %s", layers, order.model, error)
            return

    def _check(self, order: Warm) -> None:
        """Check that the work may go on.

        Raises:
            _PausedError: It may not.
        """
        if order is not self._newest or self._is_loading() or self._closing.is_set():
            raise _PausedError("something else comes first")

    def _read(self, order: Warm, path: Path, layers: LayerRange) -> str:
        """Read the layers, if they fit into the free memory; returns what was done, for the log."""
        pieces = list(_pieces(Checkpoint.open(path), layers))
        num_bytes = total(piece for _, piece in pieces)
        free_bytes = free_memory()
        if num_bytes > free_bytes:
            return f"on this disk; {num_bytes / 1e6:.0f} MB are more than the free memory, {free_bytes / 1e6:.0f} MB"
        for file, (start, stop) in pieces:
            self._check(order)
            with open_regular(file) as stream:
                stream.seek(start)
                stream.read(stop - start)
        return f"{num_bytes / 1e6:.1f} MB are in the page cache"


def _pieces(checkpoint: Checkpoint, layers: LayerRange) -> Iterator[tuple[Path, tuple[int, int]]]:
    """The byte ranges of the tensors of ``layers``, each with its file, in pieces of at most ``_PIECE_BYTES``."""
    ranges: dict[Path, list[tuple[int, int]]] = {}
    for name in checkpoint.layer_names(layers):
        place = checkpoint.tensors[name]
        ranges.setdefault(place.file, []).append((place.start, place.start + place.nbytes))
    for file, found in ranges.items():
        for piece in cut(union(found), _PIECE_BYTES):
            yield file, piece
