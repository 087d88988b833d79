"""Output of `edgepp invite`, `token`, `peers` and `revoke`, and checks of `edgepp doctor` that need the coordinator."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from edgepp import __version__
from edgepp.cluster.identity import load_cluster
from edgepp.coordinator.client import CoordinatorClient, connect_coordinator
from edgepp.errors import EdgeppError, PeerLost
from edgepp.ui.finding import Finding
from edgepp.ui.screen import Rows, Screen, say
from edgepp.ui.sums import measured_sums
from edgepp.wire.address import Address

_MAX_CLOCK_OFFSET_S = 5.0


def connect(peer: str | None = None) -> CoordinatorClient:
    """A connection to the cluster of this machine; ``peer`` is ``HOST:PORT`` of the coordinator, None to search for it.

    Raises:
        UsageError: ``peer`` is not an address.
        PairingError: this machine belongs to no cluster, or is not admitted.
        PeerLost: the coordinator is not found.
    """
    return connect_coordinator([Address.parse(peer)] if peer else [])


def show_invitation(answer: Mapping[str, Any], *, as_json: bool) -> None:
    """Print a pairing code, and the command for the machine that joins."""
    code, port = answer["code"], answer["port"]
    peers = [str(Address(host, port)) for host in answer["addresses"]]
    if as_json:
        click.echo(json.dumps({"code": code, "peers": peers}))
        return
    click.echo("Run this on the other machine within ten minutes:\n")
    say(f"    edgepp join {code}\n", bold=True)
    if peers:
        say(f"If the command does not find this machine, add --peer {peers[0]}")


def show_token(answer: Mapping[str, Any], *, as_json: bool) -> None:
    """Print a token, and the steps for the machines that join by it."""
    if as_json:
        click.echo(json.dumps({"token": answer["token"], "name": answer["name"]}))
        return
    say(f"Machines with this token can join until `edgepp revoke {answer['name']}`.\nThe token is not shown again:\n")
    say(f"    EDGEPP_TOKEN={answer['token']}\n")
    click.echo("On the other machine set this variable, or name a file (mode 600) that contains")
    click.echo("the token in EDGEPP_TOKEN_FILE; then run `edgepp join`.")


def show_revoked(answer: Mapping[str, Any], *, as_json: bool) -> None:
    """Print what was revoked, and the token by which a revoked machine could join under a new key."""
    if as_json:
        click.echo(json.dumps(answer))
        return
    if answer["kind"] == "token":
        click.echo(f"{answer['revoked']} is revoked; machines that joined by it stay, and `edgepp peers` lists them")
        return
    click.echo(f"{answer['revoked']} is revoked; only a new code of `edgepp invite` lets it join again")
    if answer["came_by"]:
        name = answer["came_by"]
        click.echo(
            f"The machine joined by {name}, which lets it join under a new key: `edgepp revoke {name}` prevents that"
        )


def show_peers(answer: Mapping[str, Any], *, as_json: bool) -> None:
    """Print paired nodes, how each was paired, tokens, and what was revoked."""
    if as_json:
        click.echo(json.dumps(answer))
        return
    table = Rows("NAME", "ID", "STATE", "KEY", "PAIRED BY")
    revoked = [{**peer, "state": "revoked"} for peer in answer["revoked"]]
    for peer in [*answer["peers"], *revoked]:
        table.add_row(peer["name"], peer["node"], peer["state"], f"{peer['key'][:8]}…", peer["came_by"] or "code")
    for state, tokens in (("token", answer["tokens"]), ("withdrawn", answer["withdrawn"])):
        for token in tokens:
            table.add_row(
                token["name"], token["node"], state, "", f"{token['nodes']} node{'s' * (token['nodes'] != 1)} paired"
            )
    Screen().show(table)


def checks(peer: str | None) -> Sequence[Callable[[], Finding]]:
    """Checks of `edgepp doctor` that need the coordinator, none if this machine belongs to no cluster.

    In this order: admission by the coordinator; states, versions and clocks of the nodes; cost of sums. ``peer`` is
    ``HOST:PORT`` of the coordinator, None to search for it.
    """
    try:
        if load_cluster() is None:
            return ()
    except (EdgeppError, OSError):  # a finding of ``doctor.configuration``
        return ()
    reached: list[CoordinatorClient] = []

    def key() -> Finding:
        try:
            reached.append(connect(peer))
        except EdgeppError as error:
            return Finding("coordinator", ok=False, found=str(error), do=_next_step(error))
        return Finding("coordinator", ok=True, found=f"answers at {reached[0].address} and accepts this key", do="")

    def health() -> Finding:
        if not reached:
            return Finding("cluster", ok=None, found="not checked: the coordinator was not reached", do="")
        return _health(reached[0].status)

    def sums() -> Finding:
        if not reached:
            return Finding("sums", ok=None, found="not checked: the coordinator was not reached", do="")
        with reached.pop() as connection:
            return measured_sums(connection)

    return (key, health, sums)


def _next_step(error: EdgeppError) -> str:
    """The next step after an error, without the advice to run `edgepp doctor`, which runs already."""
    if isinstance(error, PeerLost):
        return "start `edgepp serve` on the coordinator's machine, or give its address with --peer HOST:PORT"
    return error.hint


def _health(status: Mapping[str, Any]) -> Finding:
    faults: list[str] = []
    steps = {"see `edgepp status`": None}
    for node in status["nodes"]:
        if node["state"] in ("suspect", "gone"):
            faults.append(f"{node['name']} is {node['state']}")
        if node["version"] != __version__:
            faults.append(f"{node['name']} runs edgepp {node['version']}, this machine {__version__}")
            steps["install the same version of edgepp on all machines"] = None
        if abs(node["clock_offset_s"]) > _MAX_CLOCK_OFFSET_S:
            faults.append(f"the clock of {node['name']} differs by {node['clock_offset_s']:+.0f} s")
            steps["turn on network time on all machines"] = None
    if status["state"] != "ready":
        faults.append(f"the cluster is {status['state']}: {status['reason']}")
    if faults:
        return Finding(
            "cluster",
            ok=False,
            found="; ".join(faults),
            do="; ".join(steps),
        )
    names = ", ".join(node["name"] for node in status["nodes"])
    return Finding("cluster", ok=True, found=f"ready with {names} at {time.strftime('%H:%M:%S')}", do="")
