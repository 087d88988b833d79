"""A forecast as one JSON object: seconds, bytes, bytes/s, FLOP/s and tokens/s throughout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from edgepp.errors import PlanError
from edgepp.placement.values import LinkSpeed
from edgepp.plan.chip_slices import SliceCapacity, SliceQuestion, SliceStep, critical_batch, fastest_layouts
from edgepp.plan.cluster_spec import ClusterSpec
from edgepp.plan.costs import StageTime
from edgepp.plan.forecast import BestNode, Forecast
from edgepp.plan.layout import ClusterQuestion
from edgepp.plan.predict import Decode, Prefill
from edgepp.plan.ways import Way


def unfit_dict(question: ClusterQuestion, error: PlanError) -> dict[str, Any]:
    """JSON object for a cluster that cannot hold the model."""
    return {"model": question.model.name, "fits": False, "reason": str(error), "hint": error.hint}


def forecast_dict(forecast: Forecast) -> dict[str, Any]:
    """Everything that `edgepp plan` prints, as one JSON object."""
    question, layout = forecast.question, forecast.layout
    size, workload = question.model.size, question.workload
    return {
        "model": question.model.name,
        "fits": True,
        "policy": question.policy,
        "context": question.context,
        "max_sequences": question.max_sequences,
        "weight_bytes": size.weight_bytes,
        "kv": {
            "token_bytes": size.kv_token_bytes,
            "planned_bytes": size.kv_token_bytes * question.context * question.max_sequences,
            "room_tokens": forecast.kv_room,
        },
        "nodes": _node_dicts(layout.cluster),
        "links": _link_dicts(layout.cluster.links),
        "stages": [
            {
                "node": stage.machine.node,
                "nodes": list(stage.names),
                "layers": [stage.layers.start, stage.layers.stop],
                "memory_needed_bytes": takes,
            }
            for stage, (takes, _) in zip(
                layout.stages, layout.cluster.stage_memory(question.placement, layout.plan), strict=True
            )
        ],
        "prefill": _prefill_dict(layout.prediction.prefill),
        "decode": [_decode_dict(decode, forecast) for decode in layout.prediction.decode],
        "answer": {
            "prompt": workload.prompt,
            "tokens": workload.answer,
            "seconds": layout.prediction.answer_s(workload),
        },
        "sums": _link_dicts(layout.cluster.sums),
        "ways": [_way_dict(way, forecast.ways[0]) for way in forecast.ways],
        "single": _best_node_dict(forecast.best_node) if forecast.best_node else None,
        "needs": [asdict(need) for need in forecast.needs],
        "changes": [
            {"what": one.what, "answer_s": one.answer_s, "times_as_fast": one.gain} for one in forecast.changes
        ],
    }


def _node_dicts(cluster: ClusterSpec) -> list[dict[str, Any]]:
    return [
        {
            "name": node.name,
            "coordinator": node is cluster.coordinator,
            "memory_bytes": node.memory_bytes,
            "lanes": node.machine.lanes,
            "stream_bytes_per_s": node.machine.stream_bytes_per_s,
            "flops_per_s": node.machine.flops_per_s,
            "reached": {"stream": node.machine.efficiency.stream, "flops": node.machine.efficiency.flops},
            "source": node.source,
        }
        for node in cluster.nodes
    ]


def _link_dicts(costs: Mapping[tuple[str, str], LinkSpeed]) -> list[dict[str, Any]]:
    """What it costs each pair of nodes to send something, or to add up partial sums."""
    return [
        {"nodes": list(pair), "bytes_per_s": cost.bytes_per_s, "latency_s": cost.latency_s}
        for pair, cost in costs.items()
    ]


def _way_dict(way: Way, best: Way) -> dict[str, Any]:
    prediction = way.layout.prediction
    return {
        "way": way.name,
        "policy": way.policy,
        "nodes": list(way.nodes),
        "answer_s": way.answer_s,
        "ttft_s": prediction.prefill.ttft_s,
        "tpot_s": prediction.one.tpot_s,
        "sums_s": way.sums_s,
        "times_as_long": way.answer_s / best.answer_s,
        "parts_s": prediction.one.parts,
    }


def requests_fit(decode: Decode, forecast: Forecast) -> bool:
    """Whether the KV caches of ``decode.requests`` prompts and answers fit."""
    workload = forecast.question.workload
    return decode.requests * (workload.prompt + workload.answer) <= forecast.kv_room


def sequences_needed(decode: Decode, question: ClusterQuestion) -> int:
    """Number of sequences of the planned context that ``decode.requests`` prompts and answers fill together."""
    positions = question.workload.prompt + question.workload.answer
    return -(-decode.requests * positions // question.context)


def slices_dict(question: SliceQuestion, found: Sequence[SliceCapacity]) -> dict[str, Any]:
    """Everything that `edgepp plan --slices` prints, as one JSON object."""
    return {
        "model": question.name,
        "num_weights": question.shape.num_weights(),
        "chip": asdict(question.chip),
        "context": question.context,
        "prompt": question.prompt,
        "answer": question.answer,
        "prefill_utilisation": question.utilisation,
        "slices": [_capacity_dict(one, question) for one in found],
        "fastest": [
            {"dtype": model.precision.name, **_slice_step_dict(step)} for model, step in fastest_layouts(question)
        ],
    }


def _capacity_dict(one: SliceCapacity, question: SliceQuestion) -> dict[str, Any]:
    return {
        "dtype": one.model.precision.name,
        "slice": one.slice.name,
        "chips": one.slice.chips,
        "chips_needed": one.chips_needed,
        "weight_bytes": one.model.weight_bytes,
        "kv_token_bytes": one.model.kv_token_bytes,
        "kv_room_bytes": one.kv_room_bytes,
        "sequences": one.sequences,
        "critical_batch": critical_batch(one.model.precision, question.chip),
        "queries_per_chip_per_s": one.queries_per_chip_per_s,
        "evicted_tokens_per_step": one.evicted_tokens_per_step,
        "prefill_s": one.prefill_s,
        "prefill_servers": one.prefill_servers,
        "matmul": one.matmul and asdict(one.matmul),
        "chips_bound_by_flops": one.chips_bound_by_flops,
        "chips_bound_by_memory": one.chips_bound_by_memory,
        "steps": [_slice_step_dict(step) for step in one.steps],
    }


def _slice_step_dict(step: SliceStep) -> dict[str, Any]:
    return {
        "chips": step.chips,
        "batch": step.batch,
        "step_s": step.step_s,
        "tokens_per_s": step.tokens_per_s,
        **asdict(step.parts),
        "ici_s": step.ici_s,
        "limit": step.limit,
    }


def _stage_dict(time: StageTime) -> dict[str, Any]:
    return {
        "node": time.node,
        "weights_s": time.weights_s,
        "kv_s": time.kv_s,
        "arithmetic_s": time.arithmetic_s,
        "wire_s": time.wire_s,
        "overhead_s": time.overhead_s,
        "sums_s": time.sums_s,
        "busy_s": time.busy_s,
        "limit": time.limit,
    }


def _prefill_dict(prefill: Prefill) -> dict[str, Any]:
    return {
        "tokens": prefill.tokens,
        "chunk": prefill.chunk,
        "ttft_s": prefill.ttft_s,
        "tokens_per_s": prefill.tokens_per_s,
        "stages": [_stage_dict(time) for time in prefill.stages],
    }


def _decode_dict(decode: Decode, forecast: Forecast) -> dict[str, Any]:
    return {
        "requests": decode.requests,
        "fits": requests_fit(decode, forecast),
        "sequences_needed": sequences_needed(decode, forecast.question),
        "micro_batches": decode.micro_batches,
        "tpot_s": decode.tpot_s,
        "tokens_per_s": decode.tokens_per_s,
        "limit": decode.limit,
        "parts_s": decode.parts,
        "stages": [_stage_dict(time) for time in decode.stages],
    }


def _best_node_dict(node: BestNode) -> dict[str, Any]:
    return {
        "node": node.name,
        "ttft_s": node.prediction.prefill.ttft_s,
        "tpot_s": node.prediction.one.tpot_s,
        "times_as_fast": node.speedup,
        "requests": node.requests,
        "times_the_tokens_per_s": node.throughput_ratio,
    }
