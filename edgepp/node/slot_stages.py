"""The stage processes of one slot that are ready: the running one, and for a while the one before it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from edgepp.layer_range import LayerRange
from edgepp.model.weights.checkpoint import Checkpoint
from edgepp.node.memory import free_model_memory
from edgepp.node.stage_handle import Ready
from edgepp.node.stage_ranks import StageChild, StageRanks
from edgepp.wire.messages.nodes import Load, Loaded

RETIRED_S = 120.0
"""How long a retired stage process stays, unless the coordinator ends it before."""


@dataclass(frozen=True)
class SlotStage:
    """A stage process that is ready."""

    load: Load
    child: StageChild
    ready: Ready
    ready_s: float
    """When the process became ready, by ``time.monotonic``."""
    early_ends: int
    """Stage processes before this one, in a row, that ended early."""

    def runs(self, load: Load) -> bool:
        """Whether the process runs what ``load`` orders; plan version and slot may differ."""
        return self.load._replace(plan_id=0, slot=0) == load._replace(plan_id=0, slot=0)

    def report(self, slot: int) -> Loaded:
        """The report that the process in ``slot`` does what it was ordered to."""
        load, ready, child = self.load, self.ready, self.child
        shares = (child.pids, child.weights) if isinstance(child, StageRanks) else ((), ())
        return Loaded(
            plan_id=load.plan_id,
            slot=slot,
            port=ready.address.port,
            pid=child.pid,
            backend=ready.backend,
            device=ready.device,
            weight_bytes=ready.weight_bytes,
            resident_bytes=ready.resident_bytes,
            prefill_us=ready.prefill_us,
            decode_us=ready.decode_us,
            rank_pids=shares[0],
            rank_weights=shares[1],
        )

    def passes_to(self, load: Load) -> bool:
        """Whether sequences can move from this process to stages of the plan of ``load``.

        Layers, and the ranks that share them, may differ: a group exports keys and values like one process.
        """
        mine, other = self.load, load
        return (mine.model, mine.exact, mine.kv_bits, mine.drafts) == (
            other.model, other.exact, other.kv_bits, other.drafts,
        )  # fmt: skip


class SlotStages:
    """At most two stage processes. ``running`` has the layers of the plan, ``retired`` those of the plan before.

    One thread changes them; any thread may read ``resident_bytes`` and ``children``.
    """

    def __init__(self) -> None:
        self.running: SlotStage | None = None
        self.retired: SlotStage | None = None
        """A stage process that gets no new work, from which sequences may move to other stages."""
        self._retired_until_s = 0.0

    @property
    def resident_bytes(self) -> int:
        """Memory of both processes when they became ready."""
        return sum(stage.ready.resident_bytes for stage in (self.running, self.retired) if stage)

    @property
    def children(self) -> list[StageChild]:
        """Both processes, or the one that there is, or none."""
        return [stage.child for stage in (self.running, self.retired) if stage]

    @property
    def retired_left_s(self) -> float | None:
        """Seconds until the retired process has to end; None where there is none."""
        return max(0.0, self._retired_until_s - time.monotonic()) if self.retired else None

    def retire(self) -> None:
        """Retire the running process, in place of the one that was retired before; nothing where none runs."""
        if self.running is not None:
            self.stop_retired()
            self.running, self.retired = None, self.running
            self._retired_until_s = time.monotonic() + RETIRED_S

    def take_back(self) -> None:
        """Let the retired process run again, and retire the running one."""
        again, self.retired = self.retired, None
        self.retire()
        self.running = again

    def stop_retired(self) -> None:
        """End the retired process, if there is one."""
        retired, self.retired = self.retired, None
        if retired is not None:
            retired.child.stop()

    def stop(self) -> None:
        """End both processes."""
        self.stop_retired()
        running, self.running = self.running, None
        if running is not None:
            running.child.stop()


def fits_beside(old: Ready, path: Path, layers: LayerRange, memory_bytes: int) -> bool:
    """Whether memory suffices for a stage process of ``layers`` of the checkpoint in ``path`` while ``old`` stays.

    ``memory_bytes`` is the memory for the weights of both.
    """
    weight_bytes = Checkpoint.open(path).layer_bytes(layers)
    expected_bytes = weight_bytes * max(1.0, old.resident_bytes / max(1, old.weight_bytes))
    return old.weight_bytes + weight_bytes <= memory_bytes and expected_bytes <= free_model_memory()
