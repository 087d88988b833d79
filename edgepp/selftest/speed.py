"""Checks of speed: hops and links, and a request against one machine and against the plan's prediction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgepp.benchmark.prompts import numbers
from edgepp.benchmark.report import SingleResult
from edgepp.benchmark.workload import FreshOwners, SingleRun, ask_alone, single_result
from edgepp.layer_range import LayerRange
from edgepp.plan.live_cluster import from_status
from edgepp.plan.machines import Stage, Workload
from edgepp.plan.planned_model import read_model
from edgepp.plan.predict import predict
from edgepp.python_api import Engine
from edgepp.selftest.result import CheckResult
from edgepp.selftest.setting import Setting

MAX_HOP_MS = 50.0
"""Longest good time of a hidden state from one stage into the next; ten times that of a good wireless link."""
MIN_OF_ONE_MACHINE = 0.5
"""Smallest good decode rate of a cluster, as a share of one process on this machine."""
MAX_OFF_PREDICTION = 2.0
"""Largest good factor between measured and predicted decode rate, either way (README: 1.16 at worst)."""
ROUNDS, WORDS, ANSWER = 2, 100, 32
_BUSY = "other programs kept this machine busy before, so nothing is concluded"


async def hops(setting: Setting) -> CheckResult:
    """Hop into each stage, rate of each link, and round trip to each node, as the cluster measured them."""
    status = await (await setting.subject()).status()
    stages = [
        {"stage": stage["index"], "node": stage["node"], "hop_ms": 1e3 * (stage.get("hop_s") or 0.0),
         "mbit_per_s": (stage.get("link_bytes_per_s") or 0.0) / 125e3}
        for stage in status["stages"]
    ]  # fmt: skip
    nodes = [{"node": node["name"], "rtt_ms": 1e3 * node["rtt_s"]} for node in status["nodes"]]
    longest = max((stage["hop_ms"] for stage in stages), default=0.0)
    rates = [f"{stage['mbit_per_s']:.0f} Mbit/s into {stage['node']}" for stage in stages if stage["mbit_per_s"]]
    trip = max((node["rtt_ms"] for node in nodes), default=0.0)
    line = f"longest hop {longest:.2f} ms, round trip {trip:.2f} ms; {', '.join(rates) or 'no link was measured'}"
    return CheckResult.held_to(line, longest, MAX_HOP_MS, "ms", details={"stages": stages, "nodes": nodes})


async def rates(setting: Setting) -> CheckResult:
    """Decode and prefill of the cluster, against one process on this machine."""
    ours, theirs = await _measured(setting)
    ratio = ours.decode_tokens_per_s.median / theirs.decode_tokens_per_s.median
    prefill = ours.prefill_tokens_per_s.median / theirs.prefill_tokens_per_s.median
    status = await (await setting.subject()).status()
    details = {
        "stages": len(status["stages"]), "exact": status["exact"], "decode_tokens_per_s": _spread(ours, "decode"),
        "prefill_tokens_per_s": _spread(ours, "prefill"), "one_decode_tokens_per_s": _spread(theirs, "decode"),
        "one_prefill_tokens_per_s": _spread(theirs, "prefill"), "prefill_ratio": prefill, "busy": setting.busy,
    }  # fmt: skip
    line = (
        f"decode {ours.decode_tokens_per_s.median:.1f} token/s, {ratio:.2f} of one process here; prefill"
        f" {ours.prefill_tokens_per_s.median:.0f} token/s, {prefill:.2f} of it"
    )
    if setting.busy:
        return CheckResult(None, f"{line}; {_BUSY}", ratio, details=details)
    return CheckResult.held_to(line, ratio, MIN_OF_ONE_MACHINE, "of one process", at_least=True, details=details)


async def prediction(setting: Setting) -> CheckResult:
    """Decode of the cluster, against the prediction of `edgepp plan` for its present stages.

    Prefill is only told: its prediction takes each node for a machine of its own, and its stages work at once.
    """
    ours, _ = await _measured(setting)
    planned = predicted(await (await setting.subject()).status(), ours)
    if planned is None:
        return CheckResult(None, "left out: two nodes have the same name, so the plan cannot tell them apart")
    decode, prefill = ours.decode_tokens_per_s.median, ours.prefill_tokens_per_s.median
    share = decode / planned["decode_tokens_per_s"]
    details = {"predicted": planned, "decode_tokens_per_s": decode, "prefill_tokens_per_s": prefill, "share": share}
    line = (
        f"decode {decode:.1f} token/s, {share:.2f} of the {planned['decode_tokens_per_s']:.1f} that `edgepp plan`"
        f" predicts; prefill {prefill:.0f}, predicted {planned['prefill_tokens_per_s']:.0f}"
    )
    off = max(share, 1 / share)
    if setting.busy:
        return CheckResult(None, f"{line}; {_BUSY}", off, details=details)
    return CheckResult.held_to(line, off, MAX_OFF_PREDICTION, "times off", details=details)


async def _measured(setting: Setting) -> tuple[SingleResult, SingleResult]:
    """Rates of the cluster and of one process on this machine, in turn; measured once per selftest."""
    if setting.measured is not None:
        return setting.measured
    subject = await setting.subject()
    status = await subject.status()
    turns = numbers()
    together: list[SingleRun] = []
    alone: list[SingleRun] = []
    async with Engine(subject.model, exact=bool(status["exact"]), speculate="off") as engine:
        one = FreshOwners(engine)
        with subject.at_home():
            async with subject.connection() as connection:
                for number in range(ROUNDS + 1):
                    setting.say(f"speed: round {number} of {ROUNDS}")
                    asked = next(turns)
                    pair = [await ask_alone(side, asked, WORDS, ANSWER) for side in (connection, one)]
                    if number:  # the first round warms up
                        together.append(pair[0])
                        alone.append(pair[1])
    setting.measured = single_result(together), single_result(alone)
    return setting.measured


def predicted(status: Mapping[str, Any], measured: SingleResult) -> dict[str, float] | None:
    """The plan's rates for the present stages; None where two nodes share a name."""
    model = read_model(str(status["model"]))
    spec = from_status(status, model.size)
    machines = {node.name: node.machine for node in spec.nodes}
    if not all(stage["node"] in machines for stage in status["stages"]):
        return None
    stages = [Stage(machines[stage["node"]], LayerRange(*stage["layers"])) for stage in status["stages"]]
    workload = Workload(prompt=measured.prompt_tokens, answer=measured.tokens)
    found = predict(model, stages, spec.links, workload, spec.coordinator.machine)
    return {"decode_tokens_per_s": found.one.tokens_per_s, "prefill_tokens_per_s": found.prefill.tokens_per_s}


def _spread(result: SingleResult, name: str) -> dict[str, float]:
    spread = result.decode_tokens_per_s if name == "decode" else result.prefill_tokens_per_s
    return {"median": spread.median, "low": spread.low, "high": spread.high}
