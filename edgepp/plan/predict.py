"""How fast a pipeline will be: decode, prefill and first token from a model's sizes, machines and links.

Pure: no socket, no clock. Seconds, bytes/s, FLOP/s. The model, in short:

- A stage streams its weights once a step, and reads every sequence's KV caches; rows add arithmetic (``_rows_s``).
- B requests travel as at most one micro-batch a stage, as ``engine.scheduler`` makes them. A cycle, in which each
  request gains one token, takes the longer of one micro-batch's whole way round and of what the busiest machine or link
  has to do for all of them.
- A prompt goes in chunks that follow each other; each waits for a free link, a free stage and room in the ring.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from edgepp.cluster.sizes import UNKNOWN_LINK, Links, LinkSpeed
from edgepp.errors import PlanError
from edgepp.layers import LayerRange, check_tiling
from edgepp.plan.machines import Machine, Model, Stage, Workload

_SPARE_CHUNKS = 2
_CHUNK_S = 2.0
"""The engine's limits: chunks in the ring beyond one a stage, and seconds of one chunk's way round."""


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
    busy_s: float
    """The stage's own seconds: KV, and weights with what arithmetic they do not hide."""

    @property
    def limit(self) -> str:
        """What takes the longest: ``weights``, ``KV``, ``FLOPs`` or ``wire``."""
        parts = {"weights": self.weights_s, "KV": self.kv_s, "FLOPs": self.flops_s, "wire": self.wire_s}
        return max(parts, key=lambda part: parts[part])


@dataclass(frozen=True)
class Decode:
    """So many requests decoding at once."""

    requests: int
    micro_batches: int
    stages: tuple[StageTime, ...]
    """Of the largest micro-batch."""
    ends_s: float
    """The coordinator's: embedding, norm, head, sampling."""
    return_s: float
    """The hop back to the coordinator."""
    tpot_s: float
    """Seconds between two tokens of one request."""
    limit: str
    """What sets the cycle: ``way`` for one micro-batch's whole way, else the busiest machine or link."""

    @property
    def tokens_s(self) -> float:
        """Tokens/s of all requests together."""
        return self.requests / self.tpot_s

    @property
    def parts(self) -> dict[str, float]:
        """Seconds of one micro-batch's way round by what they go into."""
        return {
            "weights": sum(stage.weights_s for stage in self.stages),
            "KV": sum(stage.kv_s for stage in self.stages),
            "FLOPs": sum(stage.flops_s for stage in self.stages),
            "wire": sum(stage.wire_s for stage in self.stages) + self.return_s,
            "ends": self.ends_s,
        }


@dataclass(frozen=True)
class Prefill:
    """One prompt through an idle pipeline."""

    tokens: int
    chunk: int
    stages: tuple[StageTime, ...]
    """Of all chunks together."""
    ttft_s: float
    """Until the first token is sampled."""

    @property
    def tokens_s(self) -> float:
        """Prompt tokens a second."""
        return self.tokens / self.ttft_s


@dataclass(frozen=True)
class Prediction:
    """What a pipeline will do."""

    prefill: Prefill
    decode: tuple[Decode, ...]
    """One for each number of requests that was asked for."""

    @property
    def one(self) -> Decode:
        """The fewest requests at once."""
        return self.decode[0]

    def answer_s(self, workload: Workload) -> float:
        """Seconds from question to last token, of one request alone."""
        return self.prefill.ttft_s + (workload.answer - 1) * self.one.tpot_s


def predict(
    model: Model, stages: Sequence[Stage], links: Links, workload: Workload, coordinator: Machine | None = None
) -> Prediction:
    """What ``stages`` in pipeline order will do; the coordinator is the first stage's machine unless another is given.

    ``links`` by node names, in either order; what is not in it counts as ``UNKNOWN_LINK``.

    Raises:
        PlanError: the stages do not make up the model, or nothing is asked of them.
    """
    check_tiling([stage.layers for stage in stages], model.size.layers)
    if min(workload.prompt, workload.answer, *workload.requests, workload.chunk or 1) < 1 or not workload.requests:
        raise PlanError("a prediction needs a prompt, an answer and requests of at least 1")
    ring = _Ring(model, stages, links, coordinator or stages[0].machine)
    decode = tuple(ring.decode(count, workload.position) for count in sorted(workload.requests))
    return Prediction(ring.prefill(workload.prompt, workload.chunk), decode)


def link_between(links: Mapping[tuple[str, str], LinkSpeed], one: str, other: str) -> LinkSpeed | None:
    """The link between two nodes; None within one."""
    if one == other:
        return None
    return links.get((one, other)) or links.get((other, one)) or UNKNOWN_LINK


def _rows_s(rows: int, weights_s: float, row_s: float, machine: Machine) -> float:
    """Seconds in which ``rows`` pass weights that take ``weights_s`` to stream and ``row_s`` of arithmetic a row.

    Two points are measured, one row and a chunk. Between them arithmetic hides behind streaming, as on a GPU, or adds
    up row by row, as on a CPU; ``overlap`` says how much of the first.
    """
    hidden, overlap = max(weights_s, rows * row_s), machine.efficiency.overlap
    added = max(0.0, machine.chunk * row_s - weights_s) / (machine.chunk - 1)
    return overlap * hidden + (1 - overlap) * max(weights_s + (rows - 1) * added, rows * row_s)


class _Ring:
    """The coordinator, its stages, and the hops between them."""

    def __init__(self, model: Model, stages: Sequence[Stage], links: Links, coordinator: Machine) -> None:
        self.model, self.stages, self.coordinator = model, stages, coordinator
        way = [coordinator, *(stage.machine for stage in stages), coordinator]
        self.hops = [(link_between(links, a.node, b.node), b.efficiency.hop_s) for a, b in pairwise(way)]

    # One step

    def stage_s(self, index: int, rows: int, read: float, attended: float) -> StageTime:
        """One step of ``rows``, which reads ``read`` positions of KV caches and attends ``attended`` times to one."""
        stage, size = self.stages[index], self.model.size
        machine, layers = stage.machine, len(stage.layers)
        reached = machine.efficiency
        weights_s = layers * size.layer_bytes / (machine.stream_bps * reached.stream)
        kv_s = layers * size.kv_bytes * read / (machine.stream_bps * reached.kv)
        row_s = layers * size.layer_flops / (machine.flops * reached.flops)
        attention_s = layers * self.model.attention_flops * attended / (machine.flops * reached.flops)
        computed_s = _rows_s(rows, weights_s, row_s, machine)
        return StageTime(
            node=machine.node,
            layers=stage.layers,
            weights_s=weights_s,
            kv_s=kv_s,
            flops_s=rows * row_s + attention_s,
            wire_s=self.hop_s(index, rows),
            busy_s=reached.step_s + computed_s + max(kv_s, attention_s),
        )

    def transfer_s(self, hop: int, rows: int) -> float:
        """Seconds for which ``rows`` keep a link busy."""
        link = self.hops[hop][0]
        return rows * self.model.size.hidden * self.model.wire_item_bytes / link.bytes_s if link else 0.0

    def delay_s(self, hop: int) -> float:
        """What a hop takes beyond that: latency and software."""
        link, software_s = self.hops[hop]
        return software_s + (link.latency_s if link else 0.0)

    def hop_s(self, hop: int, rows: int) -> float:
        """Seconds of ``rows`` over an idle link."""
        return self.transfer_s(hop, rows) + self.delay_s(hop)

    def ends_s(self, rows: int) -> float:
        """Head and sampling of ``rows``; reading their embeddings hardly counts, and is in ``sample_s``."""
        machine, reached = self.coordinator, self.coordinator.efficiency
        weights_s = self.model.head_bytes / (machine.stream_bps * reached.stream)
        row_s = self.model.head_flops / (machine.flops * reached.flops)
        return _rows_s(rows, weights_s, row_s, machine) + rows * reached.sample_s

    # Many steps

    def decode(self, requests: int, position: int) -> Decode:
        """One cycle, in which each of ``requests`` gains a token."""
        rows = -(-requests // len(self.stages))
        batches = -(-requests // rows)
        times = tuple(self.stage_s(i, rows, rows * position, rows * position) for i in range(len(self.stages)))
        ends_s, return_s = self.ends_s(rows), self.hop_s(len(self.stages), rows)
        bounds = {"way": sum(time.busy_s + time.wire_s for time in times) + return_s + ends_s}
        for hop in range(len(self.hops)):
            bounds[f"link {hop}"] = batches * self.transfer_s(hop, rows)
        for machine, busy in self._busy(times, ends_s):
            bounds[machine.node] = batches * max(max(busy), sum(busy) / machine.lanes)
        limit = max(bounds, key=lambda name: bounds[name])
        return Decode(requests, batches, times, ends_s, return_s, bounds[limit], limit)

    def _busy(self, times: Sequence[StageTime], ends_s: float) -> Iterator[tuple[Machine, list[float]]]:
        """Each machine, and the seconds that each of its processes works on one micro-batch."""
        machines = {stage.machine.node: stage.machine for stage in self.stages}
        machines.setdefault(self.coordinator.node, self.coordinator)
        for node, machine in machines.items():
            ends = [ends_s] if node == self.coordinator.node else []
            yield machine, [*(time.busy_s for time in times if time.node == node), *ends]

    def prefill(self, prompt: int, chunk: int | None) -> Prefill:
        """A prompt's chunks, each as soon as its link, its stage and the ring have room."""
        count = len(self.stages)
        chunk = chunk or self._chunk()
        link_free, stage_free = [0.0] * count, [0.0] * count
        times: list[list[StageTime]] = [[] for _ in self.stages]
        back: list[float] = []
        for number, start in enumerate(range(0, prompt, chunk)):
            rows = min(chunk, prompt - start)
            room = number - count - _SPARE_CHUNKS
            at = back[room] if room >= 0 else 0.0
            for i in range(count):
                time = self.stage_s(i, rows, start + rows, rows * (start + rows / 2))
                link_free[i] = max(at, link_free[i]) + self.transfer_s(i, rows)
                stage_free[i] = at = max(link_free[i] + self.delay_s(i), stage_free[i]) + time.busy_s
                times[i].append(time)
            back.append(at + self.delay_s(count))
        totals = tuple(_together(some) for some in times)
        last_s = max([back[-1], *(sum(busy) / machine.lanes for machine, busy in self._busy(totals, 0.0))])
        return Prefill(prompt, chunk, totals, last_s + self.transfer_s(count, 1) + self.ends_s(1))

    def _chunk(self) -> int:
        """As ``engine.engine`` takes them: half of what is efficient where stages are several, and not too slow."""
        efficient = min(stage.machine.chunk for stage in self.stages)
        wanted = efficient if len(self.stages) == 1 else efficient // 2
        token_s = sum(self.stage_s(i, wanted, 0, 0).busy_s for i in range(len(self.stages))) / wanted
        return max(1, min(wanted, int(_CHUNK_S / token_s)))


def _together(times: Sequence[StageTime]) -> StageTime:
    """All steps of one stage as one."""
    return StageTime(
        node=times[0].node,
        layers=times[0].layers,
        weights_s=sum(time.weights_s for time in times),
        kv_s=sum(time.kv_s for time in times),
        flops_s=sum(time.flops_s for time in times),
        wire_s=sum(time.wire_s for time in times),
        busy_s=sum(time.busy_s for time in times),
    )
