"""`edgepp status`: the cluster as two tables, once or again and again."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import click
from rich.console import Group
from rich.live import Live
from rich.text import Text

from edgepp.cluster.identity import load_view
from edgepp.coordinator.client import CoordinatorClient
from edgepp.errors import EdgeppError, PeerLost
from edgepp.layers import LayerRange
from edgepp.ui.peers import connect
from edgepp.ui.progress import megabytes
from edgepp.ui.screen import Rows, Screen

_AGAIN_S = 1.0
_COLOURS = {
    "ready": "green",
    "joined": "yellow",
    "loading": "yellow",
    "waiting": "yellow",
    "suspect": "red",
    "gone": "dim",
}


def show_status(peer: str | None, *, watch: bool, as_json: bool) -> None:
    """Print the cluster's state; with ``watch`` until Ctrl-C, finding the coordinator again when it was away."""
    if not watch:
        try:
            with connect(peer) as served:
                state = served.status
        except PeerLost as error:
            _last_heard(error)
            raise
        if as_json:
            click.echo(json.dumps(state))
        else:
            Screen().show(picture(state))
        return
    if as_json:
        _watch(
            peer, lambda state: click.echo(json.dumps(state)), lambda error: click.echo(json.dumps({"error": error}))
        )
        return
    with Live(console=Screen(), refresh_per_second=4) as live:
        _watch(peer, lambda state: live.update(picture(state)), lambda error: live.update(Text(error, style="red")))


def _last_heard(error: EdgeppError) -> None:
    """Add what this node knows to an error: the view that the coordinator sent last."""
    view = load_view()
    if view is not None:
        names = ", ".join(f"{m['name']} {m['state']} at {m['address']}" for m in view["members"])
        error.hint = (
            f"{error.hint}. Last heard {view['heard']}: view {view['version']}, plan {view['plan_version']}: {names}"
        )


def _watch(peer: str | None, show: Callable[[dict[str, Any]], None], complain: Callable[[str], None]) -> None:
    served: CoordinatorClient | None = None
    try:
        while True:
            try:
                if served is None:
                    served = connect(peer)
                show(served.call("status"))
            except EdgeppError as error:
                complain(str(error))
                if served is not None:
                    served.close()
                    served = None
            time.sleep(_AGAIN_S)
    finally:
        if served is not None:
            served.close()


def picture(state: Mapping[str, Any]) -> Group:
    """The state as lines and tables."""
    answers = state["answers"]
    head = Text.assemble(
        (str(state["model"]), "bold"),
        f" on {state['coordinator']} · ",
        (str(state["state"]), _COLOURS[state["state"]]),
        f" · plan {state['plan_version']} by {state['policy']} · view {state['view']} ·"
        f" {answers['under_way']} answers under way,"
        f" {answers['done']} done",
    )
    if answers["last_decode_tokens_per_s"]:
        head.append(
            f" · last {answers['last_decode_tokens_per_s']:.1f} token/s, first after {answers['last_ttft_s']:.2f} s"
        )
    engine = state["engine"]
    if engine.get("prompt_tokens"):
        hit = engine["reused_tokens"] / engine["prompt_tokens"]
        head.append(f" · {100 * hit:.0f} % of the prompts' tokens reused, {engine['waiting']} waiting")
    lines: list[Any] = [head]
    if state["reason"]:
        lines.append(Text(str(state["reason"]), style="yellow"))
    return Group(*lines, "", _nodes(state), *_spares(state), "", _stages(state))


def _nodes(state: Mapping[str, Any]) -> Rows:
    table = Rows("NODE", "STATE", "ROLES", "ADDRESS", ">MEMORY", ">FREE", "BACKEND", ">STREAM", ">GFLOP/S", ">RTT")
    for node in state["nodes"]:
        table.add_row(
            f"{node['name']} {node['node'][:6]}",
            Text(node["state"], style=_COLOURS[node["state"]]),
            ", ".join(node["roles"]) or "spare",
            node["address"],
            megabytes(node["memory_bytes"]),
            megabytes(node["memory_free_bytes"]),
            f"{node['backend']} × {node['threads']}",
            f"{node['stream_bytes_per_s'] / 1e9:.1f} GB/s",
            f"{node['flops_per_s'] / 1e9:.0f}",
            f"{node['rtt_s'] * 1e3:.1f} ms",
        )
    return table


def _spares(state: Mapping[str, Any]) -> list[Text]:
    """A line per node without layers: why it has none."""
    told = ((node["name"], node.get("reason", "")) for node in state["nodes"] if not node["layers"])
    return [Text(f"{name} runs no layers: {reason}", style="dim") for name, reason in told if reason]


def _stages(state: Mapping[str, Any]) -> Rows:
    table = Rows(
        "STAGE", "LAYERS", "NODE", "ADDRESS", "STATE", "BACKEND", ">IN MEMORY", ">KV", ">SEQUENCES", ">STAGE", ">WIRE"
    )
    for stage in state["stages"]:
        loaded = stage["state"] == "ready"
        progress = "" if loaded else f" {100 * stage['progress']:.0f} %"
        table.add_row(
            str(stage["index"]),
            str(LayerRange(*stage["layers"])),
            stage["node"],
            stage["address"],
            Text(stage["state"] + progress, style=_COLOURS[stage["state"]]),
            f"{stage['backend']} on {stage['device']}",
            megabytes(stage["resident_bytes"]) if loaded else "",
            megabytes(stage.get("kv_bytes", 0)),
            str(stage.get("sequences", "")),
            _ms(stage.get("stage_s")),
            _ms(stage.get("wire_s")),
        )
    return table


def _ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1e3:.2f} ms"
