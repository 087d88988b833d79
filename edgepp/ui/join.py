"""Output of `edgepp join`: of a node of a cluster, or of one stage outside of any cluster."""

from __future__ import annotations

import json
import time
from dataclasses import asdict

import click

from edgepp.events import AssignmentChanged, CoordinatorReached, Event
from edgepp.printable import one_line
from edgepp.python_api import JoinedNode, LoneStage
from edgepp.ui.progress import megabytes
from edgepp.ui.run_service import run_until_stopped
from edgepp.ui.screen import say


def run_member(node: JoinedNode, *, as_json: bool) -> None:
    """Run a node of a cluster until Ctrl-C, or until this machine leaves the cluster.

    Raises:
        UsageError: a node already runs on this machine.
        PairingError: this machine is not admitted, or not any more.
        EdgeppError: the node cannot start, or a part of it failed.
    """
    greeted: list[bool] = []

    def show(event: Event) -> None:
        if isinstance(event, AssignmentChanged) and as_json:
            ranges = [[layers.start, layers.stop] for layers in event.layers]
            click.echo(json.dumps({"event": "assignment", "layers": ranges, "reason": event.reason}))
            return
        _note(str(event), as_json=as_json)
        if isinstance(event, CoordinatorReached) and not greeted:
            greeted.append(True)
            _greet(node, event.address, as_json=as_json)

    async def drain() -> None:
        if node.has_layers:
            _note("moving this node's layers to the others; Ctrl-C again leaves at once", as_json=as_json)
            await node.drain()

    run_until_stopped(
        node,
        show,
        lambda: _note("stopping; `edgepp join` starts this node again", as_json=as_json),
        prepare_end=drain,
        quiet=as_json,
    )


def _greet(node: JoinedNode, address: str, *, as_json: bool) -> None:
    if as_json:
        facts = {"node": node.node, "name": node.name, "cluster": node.cluster, "address": address}
        click.echo(json.dumps({"event": "joined", "coordinator": node.coordinator, **facts}))
    else:
        say(f"{node.name} is a node of {node.coordinator}'s cluster")
        say("Chat from here with `edgepp chat`. Ctrl-C stops the node; `edgepp join` starts it")
        say("again, and `edgepp leave` leaves the cluster for good.")


def _note(text: str, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"event": "note", "text": text}))
    else:
        say(f"{time.strftime('%H:%M:%S')}  {one_line(text)}")


def run_stage(stage: LoneStage, *, as_json: bool) -> None:
    """Run one stage until Ctrl-C.

    Raises:
        EdgeppError: the stage cannot be loaded, its address is in use, or its process died.
    """
    run_until_stopped(
        stage,
        lambda event: _note(str(event), as_json=as_json),
        lambda: click.echo("stopped"),
        lambda: _announce(stage, as_json=as_json),
        quiet=as_json,
    )


def _announce(stage: LoneStage, *, as_json: bool) -> None:
    """Print the layers, size and speed of a loaded stage, its address, and a command to chat with the model."""
    service = stage.service
    options, ready, node = service.options, service.ready, service.node
    if as_json:
        facts = asdict(ready) | {"address": stage.address, "layers": [options.layers.start, options.layers.stop]}
        click.echo(json.dumps(facts | {"model": options.model, "node": node}))
        return
    say(
        f"layers {options.layers} of {options.model} on {ready.backend} ({ready.device}):"
        f" {megabytes(ready.weight_bytes)} loaded in {ready.seconds:.1f} s,"
        f" {megabytes(ready.resident_bytes)} in memory, prefill {1e6 / ready.prefill_us:.0f} token/s,"
        f" decode {ready.decode_us / 1000:.1f} ms per token"
    )
    say(f"listening on {stage.address}. Once the other stages run:")
    say(f"  edgepp chat -m {options.model} --peer {stage.address} --peer <address of each other stage>")
    if not ready.address.is_loopback:
        click.secho(
            "INSECURE: anyone who can reach this address can use this stage and read what passes through it",
            fg="yellow",
            err=True,
        )
    click.echo("Ctrl-C stops the stage")
