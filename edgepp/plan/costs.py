"""What one step costs: on a stage, at the coordinator, on a hop. ``predict`` adds them up, a simulation orders them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from edgepp.cluster.sizes import UNKNOWN_LINK, Links, LinkSpeed
from edgepp.engine.chunk_sizer import longest_chunk
from edgepp.layers import LayerRange
from edgepp.plan.machines import Machine, Model, Stage


@dataclass(frozen=True)
class StageTime:
    """Seconds of one step on one stage, by what they go into; ``wire_s`` is the hop into it."""

    node: str
    layers: LayerRange
    weights_s: float
    kv_s: float
    flops_s: float
    """All arithmetic, hidden behind the weights or not."""
    wire_s: float
    overhead_s: float
    """What steps and layers cost beside all that: small operations, calls."""
    busy_s: float
    """The stage's own seconds: overhead, KV, and weights with what arithmetic they do not hide."""

    @property
    def limit(self) -> str:
        """What takes the longest: ``weights``, ``KV``, ``FLOPs``, ``wire`` or ``overhead``."""
        parts = {
            "weights": self.weights_s,
            "KV": self.kv_s,
            "FLOPs": self.flops_s,
            "wire": self.wire_s,
            "overhead": self.overhead_s,
        }
        return max(parts, key=lambda part: parts[part])


def link_between(links: Mapping[tuple[str, str], LinkSpeed], one: str, other: str) -> LinkSpeed | None:
    """The link between two nodes; None within one, unless its processes are told to have one between them."""
    if one == other:
        return links.get((one, one))
    return links.get((one, other)) or links.get((other, one)) or UNKNOWN_LINK


class Costs:
    """Seconds of single steps: of the coordinator, its stages, and the hops between them.

    Hop ``i`` leads to stage ``i``, the last one back to the coordinator.
    """

    def __init__(self, model: Model, stages: Sequence[Stage], links: Links, coordinator: Machine) -> None:
        self.model, self.stages, self.coordinator, self.links = model, stages, coordinator, links
        way = [coordinator, *(stage.machine for stage in stages), coordinator]
        self.hops = [(link_between(links, a.node, b.node), b.efficiency.hop_s) for a, b in pairwise(way)]

    @property
    def machines(self) -> list[Machine]:
        """Each machine once; where the coordinator shares one with stages, as the stages know it."""
        return list(
            {machine.node: machine for machine in (self.coordinator, *(s.machine for s in self.stages))}.values()
        )

    def beside(self, working: int) -> Costs:
        """The costs while so many processes of a machine work at once, as far as it has them."""
        nodes = Counter([self.coordinator.node, *(stage.machine.node for stage in self.stages)])

        def shared(machine: Machine) -> Machine:
            return machine.beside(min(working, nodes[machine.node]))

        stages = [replace(stage, machine=shared(stage.machine)) for stage in self.stages]
        return Costs(self.model, stages, self.links, shared(self.coordinator))

    def stage_s(self, index: int, rows: int, read: float, attended: float) -> StageTime:
        """One step of ``rows``, which reads ``read`` positions of KV caches and attends ``attended`` times to one."""
        stage, size = self.stages[index], self.model.size
        machine, layers = stage.machine, len(stage.layers)
        reached = machine.efficiency
        weights_s = layers * size.layer_bytes / (machine.stream_bps * reached.stream)
        kv_s = layers * size.kv_bytes * read / (machine.stream_bps * reached.kv)
        row_s = layers * size.layer_flops / (machine.flops * reached.flops)
        attention_s = (
            layers * self.model.attention_flops * attended / (machine.flops * reached.flops * reached.attention)
        )
        computed_s = _rows_s(rows, weights_s, row_s, machine)
        overhead_s = reached.step_s + layers * reached.layer_s
        return StageTime(
            node=machine.node,
            layers=stage.layers,
            weights_s=weights_s,
            kv_s=kv_s,
            flops_s=rows * row_s + attention_s,
            wire_s=self.hop_s(index, rows),
            overhead_s=overhead_s,
            busy_s=overhead_s + computed_s + max(kv_s, attention_s),
        )

    def transfer_s(self, hop: int, rows: int) -> float:
        """Seconds for which ``rows`` keep a link busy."""
        link = self.hops[hop][0]
        return rows * self.model.size.hidden * self.model.wire_item_bytes / link.bytes_s if link else 0.0

    def delay_s(self, hop: int) -> float:
        """What a hop takes beyond that: latency and software."""
        link, software_s = self.hops[hop]
        return software_s + (link.latency_s if link else 0.0)

    def software_s(self, hop: int) -> float:
        """What of it is work, which counts as the receiver's."""
        return self.hops[hop][1]

    def hop_s(self, hop: int, rows: int) -> float:
        """Seconds of ``rows`` over an idle link."""
        return self.transfer_s(hop, rows) + self.delay_s(hop)

    def ends_s(self, rows: int) -> float:
        """Head and sampling of ``rows``; reading their embeddings hardly counts, and is in ``sample_s``."""
        machine, reached = self.coordinator, self.coordinator.efficiency
        weights_s = self.model.head_bytes / (machine.stream_bps * reached.stream)
        row_s = self.model.head_flops / (machine.flops * reached.flops)
        return _rows_s(rows, weights_s, row_s, machine) + rows * reached.sample_s

    def chunk(self) -> int:
        """Tokens of a prefill chunk, by the engine's own rule."""
        efficient = min(stage.machine.chunk for stage in self.stages)
        token_s = sum(self.stage_s(i, efficient, 0, 0).busy_s for i in range(len(self.stages))) / efficient
        return longest_chunk(efficient, len(self.stages), token_s)


def _rows_s(rows: int, weights_s: float, row_s: float, machine: Machine) -> float:
    """Seconds in which ``rows`` pass weights that take ``weights_s`` to stream and ``row_s`` of arithmetic a row.

    No row takes less than its own arithmetic. One row and a chunk are always measured. Where nothing between them is,
    arithmetic hides behind streaming, as on a GPU, or adds up row by row, as on a CPU; ``overlap`` says how much of the
    first.
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
    """The value of a polygon through ``points``, whose first coordinates rise, at one between the first and last."""
    (x0, y0), (x1, y1) = next((a, b) for a, b in pairwise(points) if at <= b[0])
    return y0 + (y1 - y0) * (at - x0) / (x1 - x0)
