"""`edgepp join`: a member of a cluster, or one stage by hand; what either says."""

from __future__ import annotations

import json
import time
from dataclasses import asdict

import click

from edgepp.api import JoinedNode, LoneStage
from edgepp.events import AssignmentChanged, CoordinatorReached, Event
from edgepp.printable import one_line
from edgepp.ui.progress import megabytes
from edgepp.ui.run_service import run_until_stopped
from edgepp.ui.screen import say


def run_member(node: JoinedNode, *, as_json: bool) -> None:
    """Be a node of a cluster until Ctrl-C, or until this machine leaves it.

    Raises:
        UsageError: this machine's node runs already.
        PairingError: this machine is not, or no longer, admitted.
        EdgeppError: what else keeps it from being one.
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

    run_until_stopped(
        node,
        show,
        lambda: _note("stopping; `edgepp join` makes this machine a node again", as_json=as_json),
        quiet=as_json,
    )


def _greet(node: JoinedNode, address: str, *, as_json: bool) -> None:
    if as_json:
        facts = {"node": node.node, "name": node.name, "cluster": node.cluster, "address": address}
        click.echo(json.dumps({"event": "joined", "coordinator": node.coordinator, **facts}))
    else:
        say(f"{node.name} is a node of {node.coordinator}'s cluster")
        say("Ctrl-C stops it, and `edgepp join` starts it again; `edgepp leave` leaves the cluster for good")


def _note(text: str, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"event": "note", "text": text}))
    else:
        say(f"{time.strftime('%H:%M:%S')}  {one_line(text)}")


def run_stage(stage: LoneStage, *, as_json: bool) -> None:
    """Run one stage until Ctrl-C.

    Raises:
        EdgeppError: the stage cannot be loaded, its address is taken, or it died.
    """
    run_until_stopped(
        stage,
        lambda event: _note(str(event), as_json=as_json),
        lambda: click.echo("stopped"),
        lambda: _announce(stage, as_json=as_json),
        quiet=as_json,
    )


def _announce(stage: LoneStage, *, as_json: bool) -> None:
    """Say what was loaded, how many bytes, how long it took, and how to talk to it."""
    service = stage.service
    options, ready, node = service.options, service.ready, service.node
    if as_json:
        facts = asdict(ready) | {"address": stage.address, "layers": [options.layers.start, options.layers.stop]}
        click.echo(json.dumps(facts | {"model": options.model, "node": node}))
        return
    say(
        f"layers {options.layers} of {options.model} on {ready.backend} ({ready.device}):"
        f" {megabytes(ready.weight_bytes)} loaded in {ready.seconds:.1f} s,"
        f" {megabytes(ready.resident_bytes)} in memory, {1e6 / ready.prefill_us:.0f} token/s in a prompt,"
        f" {ready.decode_us / 1000:.1f} ms a token after it"
    )
    say(f"listening on {stage.address}; chat with it by")
    say(f"  edgepp chat -m {options.model} --peer {stage.address} --peer <the other nodes>")
    if not ready.address.is_loopback:
        click.secho("INSECURE: anyone who can reach this address can use and read this node", fg="yellow", err=True)
    click.echo("Ctrl-C ends it")
