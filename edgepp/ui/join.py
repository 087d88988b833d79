"""`edgepp join`: a member of a cluster, or one stage by hand; what either says."""

from __future__ import annotations

import contextlib
import json
import queue
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import click

from edgepp.cluster.discovery import Browser
from edgepp.cluster.identity import (
    Cluster,
    Identity,
    has_left,
    load_cluster,
    load_identity,
    remember_address,
    save_view,
)
from edgepp.cluster.running import running
from edgepp.coordinator.client import may_move, whereabouts
from edgepp.errors import EdgeppError
from edgepp.layers import LayerRange
from edgepp.model.fetch import fetch
from edgepp.model.parts import Parts
from edgepp.node.agent import Ready, StageProcess, check_listen
from edgepp.node.compute_policy import ComputePolicy
from edgepp.node.member import NodeAgent
from edgepp.node.offer import Offer
from edgepp.node.resources import measure, usable_memory
from edgepp.node.stage_config import StageConfig, StageSettings
from edgepp.printable import one_line
from edgepp.ui.pair import paired
from edgepp.ui.progress import ByteProgress, megabytes
from edgepp.ui.screen import say
from edgepp.ui.standing import Standing, read_standing
from edgepp.wire.transport import Address

_TURN_S = 0.2


@dataclass(frozen=True)
class Membership:
    """What `edgepp join` was told, for a cluster."""

    code: str | None
    peers: tuple[Address, ...]
    pinned: LayerRange | None
    memory: int | None
    backend: str
    threads: int | None
    exact: bool
    listen: Address
    replace: bool = False
    """Belong to another cluster than before."""


def run_member(wanted: Membership, *, as_json: bool) -> None:
    """Be a node of a cluster until Ctrl-C, or until this machine leaves it.

    Raises:
        UsageError: this machine's node runs already.
        PairingError: this machine is not, or no longer, admitted.
        EdgeppError: what else keeps it from being one.
    """
    with running("edgepp join"):
        _run_member(wanted, as_json=as_json)


def _run_member(wanted: Membership, *, as_json: bool) -> None:
    identity = load_identity()
    browser = Browser() if may_move(wanted.peers) else None
    try:
        cluster = paired(wanted.code, wanted.peers, identity, browser, replace=wanted.replace)
        threads = ComputePolicy.node(wanted.threads).threads
        offer = Offer(
            resources=measure(
                wanted.backend,
                threads,
                wanted.exact,
                lambda: _say("measuring this machine once, which takes some seconds", as_json=as_json),
            ),
            memory=usable_memory(wanted.memory),
            backend=wanted.backend,
            pinned=wanted.pinned,
            listen=wanted.listen,
        )
        notes: queue.SimpleQueue[str | Standing] = queue.SimpleQueue()
        where = _where(cluster, wanted.peers, browser)

        def heard(view: Mapping[str, Any]) -> None:
            save_view({**view, "heard": time.strftime("%Y-%m-%d %H:%M:%S")})  # for `edgepp status` without coordinator
            if (standing := read_standing(view, identity.node)) is not None:
                notes.put(standing)

        agent = NodeAgent(identity, cluster, offer, where, notes.put, browser.refresh if browser else _stay, heard)
        agent.start()
        try:
            _follow(agent, cluster, identity, notes, as_json=as_json)
        finally:
            agent.close()
    finally:
        if browser is not None:
            browser.close()


def _stay() -> None:
    """Nothing is to be looked for anew."""


def _where(cluster: Cluster, peers: tuple[Address, ...], browser: Browser | None) -> Callable[[], list[Address]]:
    def where() -> list[Address]:
        try:
            known = load_cluster() or cluster
        except EdgeppError:  # what it was when it could be read still serves
            known = cluster
        return whereabouts(known, peers, browser.records() if browser else ())

    return where


def _follow(
    agent: NodeAgent, cluster: Cluster, identity: Identity, notes: queue.SimpleQueue[str | Standing], *, as_json: bool
) -> None:
    known = None
    standing: Standing | None = None
    try:
        while not agent.ended.is_set() or not notes.empty():
            with contextlib.suppress(queue.Empty):
                note = notes.get(timeout=_TURN_S)
                if isinstance(note, str):
                    _say(note, as_json=as_json)
                elif note != standing:
                    standing = note
                    _tell_standing(note, as_json=as_json)
            if has_left():
                _say(
                    f"this machine has left the cluster of {cluster.coordinator.name}: `edgepp leave`", as_json=as_json
                )
                return
            if agent.address is not None and agent.address != known:
                if known is None:
                    _greet(agent.address, cluster, identity, as_json=as_json)
                known = agent.address
                remember_address(cluster.id, known)
    except KeyboardInterrupt:
        _say("stopping; `edgepp join` makes this machine a node again", as_json=as_json)
        return
    if agent.error is not None:
        raise agent.error


def _tell_standing(standing: Standing, *, as_json: bool) -> None:
    if as_json:
        ranges = [[layers.start, layers.stop] for layers in standing.layers]
        click.echo(json.dumps({"event": "standing", "layers": ranges, "reason": standing.reason}))
        return
    _say(str(standing), as_json=False)


def _greet(address: Address, cluster: Cluster, identity: Identity, *, as_json: bool) -> None:
    if as_json:
        facts = {"node": identity.node, "name": identity.name, "cluster": cluster.id, "address": str(address)}
        click.echo(json.dumps({"event": "joined", "coordinator": cluster.coordinator.name, **facts}))
    else:
        say(f"{identity.name} is a node of {cluster.coordinator.name}'s cluster")
        say("Ctrl-C stops it, and `edgepp join` starts it again; `edgepp leave` leaves the cluster for good")


def _say(text: str, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"event": "note", "text": text}))
    else:
        say(f"{time.strftime('%H:%M:%S')}  {one_line(text)}")


@dataclass(frozen=True)
class StageByHand:
    """What `edgepp join -m` was told: one stage, outside of any cluster."""

    model: str
    layers: LayerRange
    listen: Address
    backend: str
    threads: int | None
    exact: bool
    kv_bits: int | None
    insecure: bool


def run_stage(wanted: StageByHand, node: str, *, as_json: bool) -> None:
    """Run one stage until Ctrl-C.

    Raises:
        EdgeppError: it cannot be loaded, its address is taken, or it died.
    """
    check_listen(wanted.listen, insecure=wanted.insecure)
    with ByteProgress(quiet=as_json) as progress:
        path = fetch(wanted.model, Parts(layers=wanted.layers), progress)
        settings = StageSettings(ComputePolicy.node(wanted.threads), wanted.backend, wanted.listen, node)
        config = settings.config(path, wanted.model, wanted.layers, exact=wanted.exact, kv_bits=wanted.kv_bits)
        child = StageProcess(config)
        try:
            ready = child.wait_ready(lambda done, total: progress(done, total, f"layers {wanted.layers}"))
        except BaseException:
            child.stop()
            raise
    try:
        announce(config, ready, as_json=as_json)
        serve_until_stopped(child)
    finally:
        child.stop()


def announce(config: StageConfig, ready: Ready, *, as_json: bool) -> None:
    """Say what was loaded, how many bytes, how long it took, and how to talk to it."""
    if as_json:
        facts = asdict(ready) | {"address": str(ready.address), "layers": [config.start, config.stop]}
        click.echo(json.dumps(facts | {"model": config.model, "node": config.node}))
        return
    say(
        f"layers {config.layers} of {config.model} on {ready.backend} ({ready.device}):"
        f" {megabytes(ready.weight_bytes)} loaded in {ready.seconds:.1f} s,"
        f" {megabytes(ready.resident_bytes)} in memory, {1e6 / ready.prefill_us:.0f} token/s in a prompt,"
        f" {ready.decode_us / 1000:.1f} ms a token after it"
    )
    say(f"listening on {ready.address}; chat with it by")
    say(f"  edgepp chat -m {config.model} --peer {ready.address} --peer <the other nodes>")
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
