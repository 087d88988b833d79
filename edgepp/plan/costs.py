"""Seconds of one step: on a stage, at the coordinator, on a hop. ``predict`` adds them up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from edgepp.engine.chunk_sizer import longest_chunk
from edgepp.layer_range import LayerRange
from edgepp.placement.values import Links, LinkSpeed, link_between, sums_s
from edgepp.plan.machines import Machine, Model, Stage
from edgepp.plan.roofline import compute_s, read_s


@dataclass(frozen=True)
class StageTime:
    """Seconds of one step on one stage, by part; ``wire_s`` is the hop into the stage."""

    node: str
    layers: LayerRange
    weights_s: float
    kv_s: float
    arithmetic_s: float
    """All arithmetic, whether it is hidden behind reading the weights or not."""
    wire_s: float
    overhead_s: float
    """Fixed costs of each step and each layer: small operations, calls."""
    busy_s: float
    """Seconds for which the stage is busy: overhead, sums, KV, weights, and arithmetic that weights do not hide."""
    sums_s: float = 0.0
    """Seconds in which the machines that share the layers add partial sums; 0 for one machine."""

    @property
    def limit(self) -> str:
        """The part that takes longest: ``weights``, ``KV``, ``FLOPs``, ``wire``, ``sums`` or ``overhead``."""
        parts = {
            "weights": self.weights_s,
            "KV": self.kv_s,
            "FLOPs": self.arithmetic_s,
            "wire": self.wire_s,
            "overhead": self.overhead_s,
            "sums": self.sums_s,
        }
        return max(parts, key=lambda part: parts[part])


def _link(links: Links, one: str, other: str) -> LinkSpeed | None:
    """The link between two nodes; within one node None, unless ``links`` give its processes a link to each other."""
    return links.get((one, one)) if one == other else link_between(links, one, other)


class Costs:
    """Seconds of single steps: of the coordinator, its stages, and the hops between them.

    Hop ``i`` leads to stage ``i``, the last one back to the coordinator.
    """

    def __init__(self, model: Model, stages: Sequence[Stage], links: Links, coordinator: Machine) -> None:
        self.model, self.stages, self.coordinator, self.links = model, stages, coordinator, links
        path = [coordinator, *(stage.machine for stage in stages), coordinator]
        self.hops = [(_link(links, a.node, b.node), b.efficiency.hop_s) for a, b in pairwise(path)]

    @property
    def machines(self) -> list[Machine]:
        """Each machine once; the stages' figures count for a machine that the coordinator shares with them."""
        return list(
            {machine.node: machine for machine in (self.coordinator, *(s.machine for s in self.stages))}.values()
        )

    def shared_by(self, working: int) -> Costs:
        """The costs while ``working`` processes of each machine, or all if it has fewer, work at the same time."""
        nodes = Counter([self.coordinator.node, *(stage.machine.node for stage in self.stages)])

        def shared(machine: Machine) -> Machine:
            return machine.shared_by(min(working, nodes[machine.node]))

        stages = [replace(stage, machine=shared(stage.machine)) for stage in self.stages]
        return Costs(self.model, stages, self.links, shared(self.coordinator))

    def stage_s(self, index: int, rows: int, read: float, attended: float) -> StageTime:
        """One step of ``rows`` that reads ``read`` cached positions and attends to ``attended`` positions."""
        stage, size = self.stages[index], self.model.size
        machine, layers = stage.machine, len(stage.layers)
        reached = machine.efficiency
        flops_per_s = machine.flops_per_s * reached.flops
        weights_s = read_s(layers * size.layer_bytes, machine.stream_bytes_per_s * reached.stream)
        kv_s = read_s(layers * size.kv_bytes * read, machine.stream_bytes_per_s * reached.kv)
        row_s = compute_s(layers * size.layer_flops, flops_per_s)
        attention_s = compute_s(
            layers * self.model.attention_flops * attended, flops_per_s, utilisation=reached.attention
        )
        computed_s = _rows_s(rows, weights_s, row_s, machine)
        overhead_s = reached.step_s + layers * reached.layer_s
        added_s = 0.0
        if machine.sums is not None:
            overhead_s += 2 * layers * reached.half_s
            added_s = layers * sums_s(size, machine.sums, rows, machine.ranks)
        return StageTime(
            node=machine.node,
            layers=stage.layers,
            weights_s=weights_s,
            kv_s=kv_s,
            arithmetic_s=rows * row_s + attention_s,
            wire_s=self.hop_s(index, rows),
            overhead_s=overhead_s,
            busy_s=overhead_s + added_s + computed_s + max(kv_s, attention_s),
            sums_s=added_s,
        )

    def transfer_s(self, hop: int, rows: int) -> float:
        """Seconds for which ``rows`` occupy the link of ``hop``."""
        link = self.hops[hop][0]
        return link.transfer_s(self.model.size.hidden_bytes(rows, self.model.wire_item_bytes)) if link else 0.0

    def delay_s(self, hop: int) -> float:
        """Seconds of a hop beyond the transfer: latency and software."""
        link, software_s = self.hops[hop]
        return software_s + (link.latency_s if link else 0.0)

    def software_s(self, hop: int) -> float:
        """Seconds of a hop that are processor work; they count as the receiver's."""
        return self.hops[hop][1]

    def hop_s(self, hop: int, rows: int) -> float:
        """Seconds of ``rows`` over an idle link."""
        return self.transfer_s(hop, rows) + self.delay_s(hop)

    def ends_s(self, rows: int) -> float:
        """Seconds of output head and sampling for ``rows``; ``sample_s`` includes reading their embeddings.

        The coordinator computes the head, unless several machines share the last stage: those share the head too, and
        rank 0 waits for the parts of the others.
        """
        last, sampling = self.stages[-1].machine, self.coordinator.efficiency
        machine, gather_s = (self.coordinator, 0.0) if last.sums is None else (last, last.sums.latency_s)
        reached = machine.efficiency
        weights_s = read_s(self.model.head_bytes, machine.stream_bytes_per_s * reached.stream)
        row_s = compute_s(self.model.head_flops, machine.flops_per_s * reached.flops)

        def of(count: int) -> float:
            return _rows_s(count, weights_s, row_s, machine) + gather_s + count * sampling.sample_s

        is_measured = sampling.head_s and last.sums is None
        return of(rows) * (sampling.head_s / of(1) if is_measured else 1.0)

    def chunk(self) -> int:
        """Tokens of a prefill chunk, by the engine's rule (``chunk_sizer.longest_chunk``)."""
        efficient = min(stage.machine.chunk for stage in self.stages)
        token_s = sum(self.stage_s(i, efficient, 0, 0).busy_s for i in range(len(self.stages))) / efficient
        return longest_chunk(efficient, len(self.stages), token_s)


def _rows_s(rows: int, weights_s: float, row_s: float, machine: Machine) -> float:
    """Seconds in which ``rows`` pass weights that take ``weights_s`` to read, with ``row_s`` of arithmetic per row.

    A row takes at least the time of its arithmetic. ``Efficiency.batches`` gives measured points between one row and a
    chunk. Without such points ``Efficiency.overlap`` decides: 1 hides arithmetic behind reading, as on a GPU; 0 adds
    it up row by row, as on a CPU.
    """
    batches, chunk = machine.efficiency.batches, machine.chunk
    first_s = max(weights_s, row_s)
    if batches:
        points = [
            (1, first_s),
            *((n, max(times * weights_s, first_s)) for n, times in batches if 1 < n < chunk),
            (chunk, chunk * row_s),
        ]
        return _between(points, rows) if rows <= chunk else rows * row_s
    hidden, overlap = max(weights_s, rows * row_s), machine.efficiency.overlap
    added = max(0.0, chunk * row_s - first_s) / (chunk - 1)
    return overlap * hidden + (1 - overlap) * (first_s + (rows - 1) * added)


def _between(points: Sequence[tuple[int, float]], at: int) -> float:
    """Linear interpolation at ``at`` through ``points``, whose first coordinates rise."""
    (x0, y0), (x1, y1) = next((a, b) for a, b in pairwise(points) if at <= b[0])
    return y0 + (y1 - y0) * (at - x0) / (x1 - x0)
