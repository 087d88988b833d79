"""What `edgepp serve` says while it runs."""

from __future__ import annotations

import json
import queue
import time
from contextlib import suppress
from typing import Any

import click
from rich.text import Text

from edgepp.cluster.identity import has_left
from edgepp.cluster.running import running
from edgepp.coordinator.service import ServeOptions, Service
from edgepp.printable import one_line
from edgepp.ui.progress import ByteProgress
from edgepp.ui.screen import Screen, say

_TURN_S = 0.2


def run(options: ServeOptions, *, as_json: bool) -> None:
    """Serve until Ctrl-C, or until this machine leaves its cluster.

    Raises:
        UsageError: this machine's node runs already.
        EdgeppError: it cannot start, or a part of it ended by itself.
    """
    with running("edgepp serve"):
        _run(options, as_json=as_json)


def _run(options: ServeOptions, *, as_json: bool) -> None:
    notes: queue.SimpleQueue[str] = queue.SimpleQueue()
    with ByteProgress(quiet=as_json) as progress:
        service = Service(options, notes.put, progress)
    try:
        _greet(service, as_json=as_json)
        _follow(service, notes, as_json=as_json)
    except KeyboardInterrupt:
        if not as_json:
            click.echo("stopping")
    finally:
        service.close()


def _greet(service: Service, *, as_json: bool) -> None:
    state = service.report()
    if as_json:
        facts = {name: state[name] for name in ("address", "cluster", "coordinator", "model")}
        click.echo(json.dumps({"event": "listening", "port": service.coordinator.address.port, **facts}))
        return
    say(f"serving {state['model']} from {state['coordinator']}, port {service.coordinator.address.port}")
    click.echo("  edgepp invite    lets another machine join: run it here, and what it prints there")
    click.echo("  edgepp chat      talks to it, here and on every node; edgepp status shows it")
    click.echo("Ctrl-C stops it; the cluster stays until `edgepp leave`")


def _follow(service: Service, notes: queue.SimpleQueue[str], *, as_json: bool) -> None:
    console = Screen()
    spinner = console.status("")
    ready = False
    try:
        while True:
            with suppress(queue.Empty):
                _note(console, notes.get(timeout=_TURN_S), as_json=as_json)
            service.check()
            if has_left():
                _note(console, "this machine has left its cluster, which ends: `edgepp leave`", as_json=as_json)
                service.dissolve()
                return
            now_ready = service.serving.pipeline is not None
            if now_ready and not ready and as_json:
                state = service.report()
                click.echo(json.dumps({"event": "ready", "epoch": state["epoch"], "stages": state["stages"]}))
            ready = now_ready
            if console.is_terminal and not as_json:
                text = _loading(service)
                spinner.update(Text(text))
                spinner.start() if text else spinner.stop()
    finally:
        spinner.stop()


def _note(console: Screen, text: str, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"event": "note", "text": text}))
    else:
        console.show(f"{time.strftime('%H:%M:%S')}  {one_line(text)}")


def _loading(service: Service) -> str:
    shares: list[Any] = [p for p in list(service.coordinator.rollout.progress.values()) if p.total]
    return ", ".join(f"{p.what} {100 * p.done // p.total} %" for p in shares)
