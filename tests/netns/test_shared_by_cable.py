"""A cable between two machines: both share each layer while it is plugged in; answers go on when it comes and goes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from edgepp.model.random_checkpoint import TINY, make_checkpoint
from tests.netns.members import Asker, Daemon, Status, invite, join
from tests.netns.net import Lan

SHAPE = replace(
    TINY, layers=2, hidden=2048, heads=32, kv_heads=8, head_size=64, ffn=12288, bits=4, group_size=64, dtype="float16"
)
"""A layer takes some 20 ms: far more than its sums over a cable on a busy machine, less than over the slow network."""
SLOW_KBIT_PER_S = 4000
RECITE = "recite 64 Once upon a time"


def ranks(state: Status) -> set[str]:
    """Names of the machines that share a stage of an open pipeline."""
    return {rank["node"] for stage in state["stages"] for rank in stage["ranks"]} if state["moved"] else set()


def sum_s(state: Status) -> float:
    """Measured seconds of a token's sums over both machines; 0 where they were not measured."""
    return sum(pair["token_s"] or 0.0 for pair in state["sums"])


def moved_without_loss(state: Status) -> bool:
    """Whether no stage was lost, and no answer was computed anew."""
    lost = [event for event in state["events"] if event["kind"] == "PipelineLost"]
    return not lost and set(state["engine"]["recoveries"]) <= {"transfer"}


def test_machines_share_layers_once_a_fast_cable_joins_them(lan: Lan, tmp_path: Path) -> None:
    model = str(make_checkpoint(tmp_path / "wide", SHAPE))
    one, two = lan.host("one"), lan.host("two")
    for host in (one, two):
        host.slow_down(SLOW_KBIT_PER_S)
    served = Daemon(one, "serve", "-m", model, "--policy", "speed", "--threads", "1", "--exact", "--http", "off")
    served.expect("listening")
    joined = join(two, invite(one), "--exact")
    joined.expect("joined")
    here, there = Asker(one), Asker(two)
    before = here.wait("the slow network's sums", lambda state: sum_s(state) and state["state"] == "ready")
    there.tell(RECITE)
    expected = there.hear()["token_ids"]
    assert len(expected) == 64
    assert not ranks(here.status())

    there.tell(RECITE)
    here.wait("an answer is under way", lambda state: state["engine"].get("live"))
    one.cable(two)
    assert answered(there) == expected
    state = here.wait("another plan", lambda state: state["plan_version"] > before["plan_version"])
    there.tell(RECITE)
    assert sum_s(state) < sum_s(before) / 4
    assert answered(there) == expected
    state = here.wait("both share the layers", lambda state: ranks(state) == {"one", "two"})
    there.tell(RECITE)
    assert answered(there) == expected
    assert moved_without_loss(here.status())

    there.tell(RECITE)
    here.wait("the shared layers answer", lambda state: state["engine"].get("live"))
    one.uncable()
    assert answered(there) == expected
    joined.end()
    served.end()


def answered(asker: Asker) -> Any:
    """The tokens of the answer under way, or what kept it from being given."""
    said = asker.hear()
    return said.get("token_ids", said)
