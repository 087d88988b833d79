"""Output of `edgepp serve`: how to use the cluster, its events, and progress of loads on the nodes."""

from __future__ import annotations

import asyncio
import json
import time

import click
from rich.text import Text

from edgepp.api import ServedCluster
from edgepp.events import Event, PipelineOpened
from edgepp.printable import one_line
from edgepp.ui.run_service import run_until_stopped
from edgepp.ui.screen import Screen, say

_REFRESH_S = 0.2


def run(cluster: ServedCluster, *, as_json: bool) -> None:
    """Serve until Ctrl-C, or until this machine leaves its cluster.

    Raises:
        UsageError: a node already runs on this machine.
        EdgeppError: the cluster cannot start, or a part of it failed.
    """
    console = Screen()
    loading: list[asyncio.Task[None]] = []

    def greet() -> None:
        _greet(cluster, as_json=as_json)
        if console.is_terminal and not as_json:
            loading.append(asyncio.create_task(_show_loading(console, cluster)))

    def farewell() -> None:
        for task in loading:
            task.cancel()
        if not as_json:
            click.echo("stopping; `edgepp serve` continues with the same cluster")

    run_until_stopped(
        cluster, lambda event: _show_event(console, cluster, event, as_json=as_json), farewell, greet, quiet=as_json
    )


def _greet(cluster: ServedCluster, *, as_json: bool) -> None:
    state = cluster.status
    port = int(cluster.address.rpartition(":")[2])
    if as_json:
        facts = {name: state[name] for name in ("address", "cluster", "coordinator", "model")}
        click.echo(json.dumps({"event": "listening", "port": port, **facts}))
        return
    say(f"{state['coordinator']} serves {state['model']} on port {port}. In another terminal:")
    click.echo("  edgepp invite    print a code for another machine, which then joins")
    click.echo("  edgepp chat      chat with the model, here or on any machine that joined")
    click.echo("  edgepp status    show nodes and stages")
    click.echo("Ctrl-C stops serving; the cluster remains until `edgepp leave`")


def _show_event(console: Screen, cluster: ServedCluster, event: Event, *, as_json: bool) -> None:
    if not as_json:
        console.show(f"{time.strftime('%H:%M:%S')}  {one_line(str(event))}")
        return
    click.echo(json.dumps({"event": "note", "text": str(event)}))
    if isinstance(event, PipelineOpened):
        state = cluster.status
        click.echo(json.dumps({"event": "ready", "plan_version": state["plan_version"], "stages": state["stages"]}))


async def _show_loading(console: Screen, cluster: ServedCluster) -> None:
    """Show the progress of downloads and loads on the nodes."""
    spinner = console.status("")
    try:
        while cluster.is_open:
            text = ", ".join(f"{what} {100 * fraction:.0f} %" for what, fraction in cluster.loading.items())
            spinner.update(Text(text))
            spinner.start() if text else spinner.stop()
            await asyncio.sleep(_REFRESH_S)
    finally:
        spinner.stop()
