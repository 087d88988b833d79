"""What `edgepp join` says."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from edgepp.errors import EdgeppError
from edgepp.node.agent import Ready, StageProcess
from edgepp.node.stage import StageConfig
from edgepp.ui.progress import megabytes


def announce(config: StageConfig, ready: Ready, *, as_json: bool) -> None:
    """Say what was loaded, how many bytes, how long it took, and how to talk to it."""
    if as_json:
        facts = asdict(ready) | {"address": str(ready.address), "layers": [config.start, config.stop]}
        click.echo(json.dumps(facts | {"model": config.model, "node": config.node}))
        return
    click.echo(
        f"layers {config.layers} of {config.model} on {ready.backend} ({ready.device}):"
        f" {megabytes(ready.weight_bytes)} loaded in {ready.seconds:.1f} s,"
        f" {megabytes(ready.resident_bytes)} in memory, {1e6 / ready.prefill_us:.0f} token/s in a prompt,"
        f" {ready.decode_us / 1000:.1f} ms a token after it"
    )
    click.echo(f"listening on {ready.address}; chat with it by")
    click.echo(f"  edgepp chat -m {config.model} --peer {ready.address} --peer <the other nodes>")
    if not ready.address.is_loopback:
        click.secho("INSECURE: anyone who can reach this address can use and read this node", fg="yellow", err=True)
    click.echo("Ctrl-C ends it")


def serve_until_stopped(child: StageProcess) -> None:
    """Wait for Ctrl-C.

    Raises:
        EdgeppError: the stage process died by itself.
    """
    try:
        status = child.wait()
    except KeyboardInterrupt:
        click.echo("stopped")
        return
    raise EdgeppError(
        f"the stage process ended by itself (exit status {status})", "its own message stands above; join again"
    )
