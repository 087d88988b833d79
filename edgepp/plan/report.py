"""An outlook as one JSON object: seconds, bytes, bytes/s, FLOP/s and tokens/s throughout."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from edgepp.errors import PlanError
from edgepp.plan.costs import StageTime
from edgepp.plan.outlook import Outlook, Question, Single
from edgepp.plan.predict import Decode, Prefill


def unfit_form(question: Question, error: PlanError) -> dict[str, Any]:
    """What is said of a cluster that cannot hold the model."""
    return {"model": question.model.name, "fits": False, "reason": str(error), "hint": error.hint}


def outlook_form(outlook: Outlook) -> dict[str, Any]:
    """Everything that `edgepp plan` says."""
    question, laid = outlook.question, outlook.laid
    size, workload = question.model.size, question.workload
    return {
        "model": question.model.name,
        "fits": True,
        "policy": question.policy,
        "context": question.context,
        "slots": question.slots,
        "weight_bytes": size.layers * size.layer_bytes + size.ends_bytes,
        "kv": {
            "token_bytes": size.layers * size.kv_bytes,
            "planned_bytes": size.layers * size.kv_bytes * question.context * question.slots,
            "room_tokens": outlook.kv_room,
        },
        "nodes": [
            {
                "name": node.name,
                "coordinator": node is laid.cluster.coordinator,
                "memory": node.memory,
                "lanes": node.machine.lanes,
                "stream_bytes_s": node.machine.stream_bps,
                "flops": node.machine.flops,
                "reached": {"stream": node.machine.efficiency.stream, "flops": node.machine.efficiency.flops},
                "said": node.said,
            }
            for node in laid.cluster.nodes
        ],
        "links": [
            {"nodes": list(pair), "bytes_s": link.bytes_s, "latency_s": link.latency_s}
            for pair, link in laid.cluster.links.items()
        ],
        "stages": [
            {
                "node": stage.machine.node,
                "layers": [stage.layers.start, stage.layers.stop],
                "memory_needed": takes,
            }
            for stage, (takes, _) in zip(laid.stages, laid.cluster.memory(question.want, laid.plan), strict=True)
        ],
        "prefill": _prefill_form(laid.prediction.prefill),
        "decode": [_decode_form(decode, outlook) for decode in laid.prediction.decode],
        "answer": {
            "prompt": workload.prompt,
            "tokens": workload.answer,
            "seconds": laid.prediction.answer_s(workload),
        },
        "single": _single_form(outlook.single) if outlook.single else None,
        "needs": [asdict(need) for need in outlook.needs],
        "changes": [{"what": one.what, "answer_s": one.answer_s, "times_as_fast": one.gain} for one in outlook.changes],
    }


def requests_fit(decode: Decode, outlook: Outlook) -> bool:
    """Whether so many prompts and answers have memory for their KV caches."""
    workload = outlook.question.workload
    return decode.requests * (workload.prompt + workload.answer) <= outlook.kv_room


def slots_needed(decode: Decode, question: Question) -> int:
    """Slots of the planned context that so many prompts and answers take; with fewer, some wait their turn."""
    positions = question.workload.prompt + question.workload.answer
    return -(-decode.requests * positions // question.context)


def _stage_form(time: StageTime) -> dict[str, Any]:
    return {
        "node": time.node,
        "weights_s": time.weights_s,
        "kv_s": time.kv_s,
        "flops_s": time.flops_s,
        "wire_s": time.wire_s,
        "overhead_s": time.overhead_s,
        "busy_s": time.busy_s,
        "limit": time.limit,
    }


def _prefill_form(prefill: Prefill) -> dict[str, Any]:
    return {
        "tokens": prefill.tokens,
        "chunk": prefill.chunk,
        "ttft_s": prefill.ttft_s,
        "tokens_s": prefill.tokens_s,
        "stages": [_stage_form(time) for time in prefill.stages],
    }


def _decode_form(decode: Decode, outlook: Outlook) -> dict[str, Any]:
    return {
        "requests": decode.requests,
        "fits": requests_fit(decode, outlook),
        "slots_needed": slots_needed(decode, outlook.question),
        "micro_batches": decode.micro_batches,
        "tpot_s": decode.tpot_s,
        "tokens_s": decode.tokens_s,
        "limit": decode.limit,
        "parts_s": decode.parts,
        "stages": [_stage_form(time) for time in decode.stages],
    }


def _single_form(single: Single) -> dict[str, Any]:
    return {
        "node": single.name,
        "ttft_s": single.prediction.prefill.ttft_s,
        "tpot_s": single.prediction.one.tpot_s,
        "times_as_fast": single.speed,
        "crowd": single.crowd,
        "times_the_tokens_s": single.throughput,
    }
