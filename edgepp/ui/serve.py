"""Output of `edgepp serve`: how to use the cluster, its events, and progress of loads on the nodes."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

import click
from rich.text import Text

from edgepp.engine.frontend import OnProgress
from edgepp.events import Event, PipelineOpened
from edgepp.http_api import running_server
from edgepp.http_api.server import HttpServer
from edgepp.printable import one_line
from edgepp.python_api import ServedCluster
from edgepp.ui import serve_http
from edgepp.ui.run_service import run_until_stopped
from edgepp.ui.screen import Screen, say
from edgepp.ui.trace import check_writable, write_all

_REFRESH_S = 0.2


def run(cluster: ServedCluster, http: HttpServer | None, trace: Path | None, *, as_json: bool) -> None:
    """Serve until Ctrl-C, or until this machine leaves its cluster; ``http`` is None for no HTTP server.

    The traces of the newest requests are written to the file ``trace`` in the end, if one is given.

    Raises:
        UsageError: a node already runs on this machine, the address of the HTTP server is taken, or the file cannot be
            written.
        EdgeppError: the cluster cannot start, or a part of it failed.
    """
    console = Screen()
    loading: list[asyncio.Task[None]] = []

    def greet() -> None:
        _greet(cluster, http, as_json=as_json)
        if console.is_terminal and not as_json:
            loading.append(asyncio.create_task(_show_loading(console, cluster)))

    def farewell() -> None:
        for task in loading:
            task.cancel()
        if not as_json:
            click.echo("stopping; `edgepp serve` continues with the same cluster")

    run_until_stopped(
        _ClusterWithHttp(cluster, http, trace),
        lambda event: _show_event(console, cluster, event, as_json=as_json),
        farewell,
        greet,
        quiet=as_json,
    )


class _ClusterWithHttp:
    """A cluster with its HTTP server and the file of its traces.

    The server binds its port first, and answers requests once the cluster is open. The traces are written at the end.
    """

    def __init__(self, cluster: ServedCluster, http: HttpServer | None, trace: Path | None) -> None:
        self._cluster = cluster
        self._http = http
        self._trace = trace

    async def open(self, on_progress: OnProgress | None = None) -> None:
        if self._trace is not None:
            check_writable(self._trace)  # here, not after the last request
        if self._http is not None:
            self._http.listen()
        await self._cluster.open(on_progress)
        if self._http is not None:
            await self._http.open()
            running_server.announce(self._http.url)

    async def close(self) -> None:
        try:
            if self._http is not None:
                running_server.withdraw()
                await self._http.close()
            if self._trace is not None and self._cluster.is_open:
                write_all(self._cluster.traces, self._trace)
        finally:
            await self._cluster.close()

    def events(self) -> AsyncIterator[Event]:
        return self._cluster.events()


def _greet(cluster: ServedCluster, http: HttpServer | None, *, as_json: bool) -> None:
    state = cluster.status
    port = int(cluster.address.rpartition(":")[2])
    if as_json:
        facts = {name: state[name] for name in ("address", "cluster", "coordinator", "model")}
        click.echo(json.dumps({"event": "listening", "port": port, **facts, **serve_http.facts(http)}))
        return
    say(f"{state['coordinator']} serves {state['model']} on port {port}. In another terminal:")
    click.echo("  edgepp invite    print a code for another machine, which then joins")
    click.echo("  edgepp chat      chat with the model, here or on any machine that joined")
    click.echo("  edgepp status    show nodes and stages")
    serve_http.greet(http)
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
