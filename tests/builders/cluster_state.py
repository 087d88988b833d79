"""The state of a cluster as its coordinator tells it, for servers that have no cluster."""

from __future__ import annotations

from typing import Any


def node(name: str, number: str, *roles: str) -> dict[str, Any]:
    return {
        "node": number, "name": name, "roles": list(roles), "state": "ready", "draining": False,
        "address": "192.168.1.4", "memory_bytes": 8_000_000_000, "memory_free_bytes": 5_000_000_001, "backend": "onnx",
        "device": "cpu", "threads": 4, "pinned": None, "stream_bytes_per_s": 20_000_000_000,
        "flops_per_s": 200_000_000_000, "half_s": 0.00003, "rtt_s": 0.001234, "clock_offset_s": 0.0, "version": "0.1.0",
        "stage_slots": 1, "busy": 0.5, "layers": [[0, 15]], "reason": "",
    }  # fmt: skip


def stage(index: int, owner: str, hop_s: float, back_s: float = 0.0) -> dict[str, Any]:
    return {
        "index": index, "layers": [15 * index, 15 * index + 15], "node": owner, "node_id": owner, "pid": 4711,
        "address": "192.168.1.4:9", "backend": "onnx", "device": "cpu", "state": "ready", "progress": 1.0,
        "decode_s": 0.01, "prefill_tokens_per_s": 400.0, "hop_s": hop_s, "back_s": back_s, "link_bytes_per_s": 1.2e8,
        "traffic_bytes_per_s": 51234.0, "busy": 0.5,
    }  # fmt: skip


STATUS: dict[str, Any] = {
    "model": "smollm2-135m", "state": "ready", "reason": "", "loading": None, "change": None, "coordinator": "studio",
    "cluster": "c1", "policy": "memory", "context": 4096, "max_sequences": 2,
    "answers": {"under_way": 0, "done": 0, "running": []},
    "engine": {"live": 1, "recoveries": {}},
    "rates": {"tokens_per_s": 12.0, "history": [0.0, 12.0], "history_step_s": 2.0}, "trip": None, "uptime_s": 4.0,
    "nodes": [node("studio", "aa", "coordinator", "stage"), {**node("mini", "bb", "stage"), "layers": [[15, 30]]}],
    "stages": [stage(0, "aa", 0.0001), stage(1, "bb", 0.0005, 0.0002)],
    "events": [{"at_s": 1.0, "kind": "NodeJoined", "text": "mini joined from 192.168.1.7"}],
}  # fmt: skip


def home_lab() -> dict[str, Any]:
    """Three machines, each with some layers, that are writing an answer."""
    studio, mini, laptop = (
        node("studio", "aa", "coordinator", "stage"), node("mac-mini", "bb", "stage"), node("laptop", "cc", "stage"),
    )  # fmt: skip
    for one, start, stop, busy, memory in (
        (studio, 0, 14, 0.46, 64), (mini, 14, 23, 0.31, 16), (laptop, 23, 28, 0.17, 24),
    ):  # fmt: skip
        one.update(layers=[[start, stop]], busy=busy, memory_bytes=memory * 10**9, backend="mlx", device="gpu")
    stages = [
        {**stage(at, one["node"], hop_s, back_s), "layers": one["layers"][0], "busy": one["busy"], "device": "gpu",
         "resident_bytes": weights * 10**8, "kv_bytes": 12 * 10**7, "backend": "mlx"}
        for at, (one, hop_s, back_s, weights) in enumerate(
            ((studio, 0.00006, 0.0, 11), (mini, 0.00041, 0.00018, 7), (laptop, 0.0021, 0.0012, 4))
        )
    ]  # fmt: skip
    trip = {
        "steps": 22, "tokens_per_step": 1.31, "step_s": 0.0347, "live": True, "return_s": 0.0014, "head_s": 0.0021,
        "stages": [
            {"index": at, "node": one["name"], "layers": one["layers"][0], "wire_s": wire_s, "queue_s": queue_s,
             "compute_s": compute_s}
            for at, (one, wire_s, queue_s, compute_s) in enumerate(
                ((studio, 0.0001, 0.0, 0.0131), (mini, 0.0005, 0.0009, 0.0094), (laptop, 0.0024, 0.0003, 0.0045))
            )
        ],
    }  # fmt: skip
    history = [0.0] * 20 + [31.0, 36.5, 37.8, 37.1, 38.4, 38.0, 12.0] + [0.0] * 14 + [29.9, 37.0, 38.2, 36.9, 37.6]
    events = [
        (0, "ClusterReady", "the model is ready on studio"),
        (41, "NodePaired", "mac-mini was paired by invitation 7"),
        (42, "NodeJoined", "mac-mini joined from 192.168.1.7"),
        (68, "NodeJoined", "laptop joined from 192.168.1.9"), (83, "PlanChanged", "layers 14-27 moved"),
    ]  # fmt: skip
    return {
        **STATUS, "model": "llama-3.2-3b-4bit", "nodes": [studio, mini, laptop], "stages": stages, "trip": trip,
        "context": 8192, "answers": {"under_way": 1, "done": 12, "running": [{}]},
        "engine": {"live": 1, "waiting": 0, "recoveries": {}},
        "rates": {"tokens_per_s": 37.7, "history": history, "history_step_s": 2.0},
        "events": [{"at_s": 1_764_321_600.0 + at, "kind": kind, "text": text} for at, kind, text in events],
    }  # fmt: skip
