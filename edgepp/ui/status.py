"""`edgepp status`: the nodes and stages of the cluster as two tables."""

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
from edgepp.layer_range import LayerRange
from edgepp.ui.peers import connect
from edgepp.ui.progress import megabytes
from edgepp.ui.screen import Rows, Screen
from edgepp.ui.sums import sum_text, tried

_REFRESH_S = 1.0
_COLOURS = {
    "ready": "green",
    "joined": "yellow",
    "loading": "yellow",
    "waiting": "yellow",
    "suspect": "red",
    "gone": "dim",
}


def show_status(peer: str | None, *, watch: bool, as_json: bool) -> None:
    """Print the state of the cluster; with ``watch`` refresh it until Ctrl-C, and reconnect if needed.

    Raises:
        UsageError: ``peer`` is not an address.
        PairingError: this machine belongs to no cluster, or is not admitted.
        PeerLost: the coordinator is not found, without ``watch``.
    """
    if not watch:
        try:
            with connect(peer) as client:
                state = client.status
        except PeerLost as error:
            _add_last_view(error)
            raise
        if as_json:
            click.echo(json.dumps(state))
        else:
            Screen().show(tables(state))
        return
    if as_json:
        _watch(
            peer, lambda state: click.echo(json.dumps(state)), lambda error: click.echo(json.dumps({"error": error}))
        )
        return
    with Live(console=Screen(), refresh_per_second=4) as live:
        _watch(peer, lambda state: live.update(tables(state)), lambda error: live.update(Text(error, style="red")))


def _add_last_view(error: EdgeppError) -> None:
    """Add the state that the coordinator sent last to the hint of an error."""
    view = load_view()
    if view is not None:
        names = ", ".join(f"{m['name']} {m['state']} at {m['address']}" for m in view["members"])
        error.hint = f"{error.hint}. State at {view['heard']}: plan {view['plan_version']}, {names}"


def _watch(peer: str | None, show: Callable[[dict[str, Any]], None], show_error: Callable[[str], None]) -> None:
    client: CoordinatorClient | None = None
    try:
        while True:
            try:
                if client is None:
                    client = connect(peer)
                show(client.call("status"))
            except EdgeppError as error:
                show_error(str(error))
                if client is not None:
                    client.close()
                    client = None
            time.sleep(_REFRESH_S)
    finally:
        if client is not None:
            client.close()


def tables(state: Mapping[str, Any]) -> Group:
    """The state of the cluster as a line, remarks, a table of nodes and a table of stages."""
    answers = state["answers"]
    head = Text.assemble(
        (str(state["model"]), "bold"),
        f" on {state['coordinator']} · ",
        (str(state["state"]), _COLOURS[state["state"]]),
        f" · plan {state['plan_version']} (policy {state['policy']}) · answers: {answers['under_way']} running,"
        f" {answers['done']} done",
    )
    if answers["last_decode_tokens_per_s"]:
        head.append(
            f" · last: {answers['last_decode_tokens_per_s']:.1f} token/s, first after {answers['last_ttft_s']:.2f} s"
        )
    engine = state["engine"]
    if engine.get("prompt_tokens"):
        reused = engine["reused_tokens"] / engine["prompt_tokens"]
        head.append(f" · {100 * reused:.0f} % of prompt tokens reused, {engine['waiting']} requests waiting")
    if guesses := state.get("guesses", {}).get("model"):
        head.append(f" · tokens guessed with {guesses} on {state['guesses']['node']}")
    if recoveries := sum(engine.get("recoveries", {}).values()):
        times = "once" if recoveries == 1 else f"{recoveries} times"
        head.append(f" · requests went on over other stages {times}")
    lines: list[Any] = [head]
    if state["http"]:
        lines.append(Text(_http(state["http"])))
    if state["reason"]:
        lines.append(Text(str(state["reason"]), style="yellow"))
    avoided = [link for link in state.get("avoided_links", ()) if link["reason"] not in str(state["reason"])]
    lines += [Text(_avoided(link), style="yellow") for link in avoided]
    awake = [node["name"] for node in state["nodes"] if node["sleep_lock"] == "held"]
    if state["sleep_lock"] == "held":
        awake.append(state["coordinator"])
    if awake:
        lines.append(Text(f"kept from sleeping while answers are computed: {', '.join(awake)}", style="dim"))
    if problem := state.get("guesses", {}).get("problem"):
        lines.append(Text(f"guesses of a small model are missing: {problem}", style="yellow"))
    return Group(*lines, "", _nodes(state), *_spares(state), "", _stages(state), *_sums(state))


def _sums(state: Mapping[str, Any]) -> list[Text]:
    """One line per pair of nodes whose sums were measured."""
    return [Text(sum_text(pair), style="dim") for pair in tried(state)]


def _avoided(link: Mapping[str, str]) -> str:
    """Line about a link that plans avoid."""
    return f"avoided for now: the link from {link['sender']} to {link['receiver']}, since {link['reason']}"


def _http(http: Mapping[str, Any]) -> str:
    """Line with the URLs for HTTP clients, and whether clients need a key."""
    others = f", from other machines {', '.join(http['lan_urls'])}" if http["lan_urls"] else ""
    key = "every client needs a key" if http["key_required"] else "no key needed"
    return f"HTTP: {http['url']} on that machine{others} · {key}"


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
    """One line per node without layers: the reason."""
    reasons = ((node["name"], node.get("reason", "")) for node in state["nodes"] if not node["layers"])
    return [Text(f"{name} runs no layers: {reason}", style="dim") for name, reason in reasons if reason]


def _stages(state: Mapping[str, Any]) -> Rows:
    table = Rows(
        "STAGE", "LAYERS", "NODE", "ADDRESS", "STATE", "BACKEND", ">IN MEMORY", ">KV", ">SEQUENCES", ">STAGE", ">WIRE"
    )
    for stage in state["stages"]:
        loaded = stage["state"] != "loading"
        progress = "" if loaded else f" {100 * stage['progress']:.0f} %"
        table.add_row(
            str(stage["index"]),
            str(LayerRange(*stage["layers"])),
            " and ".join(rank["node"] for rank in stage.get("ranks", ())) or stage["node"],
            stage["address"],
            Text(stage["state"] + progress, style=_COLOURS[stage["state"]]),
            f"{stage['backend']} on {stage['device']}",
            megabytes(stage["resident_bytes"]) if loaded else "",
            megabytes(stage.get("kv_bytes", 0)),
            str(stage.get("sequences", "")),
            _ms(stage.get("stage_s")),
            _ms(stage.get("wire_s")),
        )
        total = sum(rank["weight"] for rank in stage["ranks"])
        for number, rank in enumerate(stage["ranks"]):
            share, condition = f"{rank['weight']} of {total} parts", Text(rank["state"], style=_COLOURS[rank["state"]])
            table.add_row("", f"rank {number}", rank["node"], f"process {rank['pid']}", condition, share, *[""] * 5)
    return table


def _ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1e3:.2f} ms"
