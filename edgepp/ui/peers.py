"""What commands about a cluster say: invitations, tokens, peers; and doctor's checks that need the coordinator."""

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
from edgepp.wire.transport import Address

_CLOCK_S = 5.0


def connect(peer: str | None = None) -> CoordinatorClient:
    """A connection to this machine's cluster.

    Raises:
        PairingError: it belongs to none, or is not admitted.
        PeerLost: the coordinator is not to be found.
    """
    return connect_coordinator([Address.parse(peer)] if peer else [])


def show_invitation(answer: Mapping[str, Any], *, as_json: bool) -> None:
    """A code and how to use it."""
    code, port = answer["code"], answer["port"]
    peers = [str(Address(host, port)) for host in answer["addresses"]]
    if as_json:
        click.echo(json.dumps({"code": code, "peers": peers}))
        return
    click.echo("On the other machine, within ten minutes:\n")
    say(f"    edgepp join {code}\n", bold=True)
    if peers:
        say(f"If it does not find this one, add --peer {peers[0]}")


def show_token(answer: Mapping[str, Any], *, as_json: bool) -> None:
    """A token and how to use it."""
    if as_json:
        click.echo(json.dumps({"token": answer["token"], "name": answer["name"]}))
        return
    say(f"Whoever has this can join until `edgepp revoke {answer['name']}`; it is not shown again:\n")
    say(f"    EDGEPP_TOKEN={answer['token']}\n")
    click.echo("On the other machine put it into the environment, or the file that EDGEPP_TOKEN_FILE names (mode 600)")


def show_revoked(answer: Mapping[str, Any], *, as_json: bool) -> None:
    """Who was revoked, and by what it might come back under a new key."""
    if as_json:
        click.echo(json.dumps(answer))
        return
    if answer["kind"] == "token":
        click.echo(f"{answer['revoked']} lets nobody in any more; the machines that came by it stay: `edgepp peers`")
        return
    click.echo(f"{answer['revoked']} is no member any more; only a new code of `edgepp invite` lets it in again")
    if answer["came_by"]:
        click.echo(f"It came by {answer['came_by']}, with which it can come under a new key: `edgepp revoke` that too")


def show_peers(answer: Mapping[str, Any], *, as_json: bool) -> None:
    """Who is paired, by which token, and who or what was revoked."""
    if as_json:
        click.echo(json.dumps(answer))
        return
    table = Rows("NAME", "ID", "STATE", "KEY", "CAME BY")
    revoked = [{**peer, "state": "revoked"} for peer in answer["revoked"]]
    for peer in [*answer["peers"], *revoked]:
        table.add_row(peer["name"], peer["node"], peer["state"], f"{peer['key'][:8]}…", peer["came_by"] or "code")
    for state, tokens in (("token", answer["tokens"]), ("withdrawn", answer["withdrawn"])):
        for token in tokens:
            table.add_row(token["name"], token["node"], state, "", f"{token['nodes']} came by it")
    Screen().show(table)


def checks(peer: str | None) -> Sequence[Callable[[], Finding]]:
    """Doctor's checks that need a coordinator: the key is accepted, versions agree, clocks agree."""
    if load_cluster() is None:
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
            return Finding("cluster", ok=None, found="not asked: the coordinator was not reached", do="")
        with reached.pop() as connection:
            return _health(connection.status)

    return (key, health)


def _next_step(error: EdgeppError) -> str:
    """What to do after an error, for someone who runs doctor already."""
    if isinstance(error, PeerLost):
        return "start `edgepp serve` there, or name its address with --peer HOST:PORT"
    return error.hint


def _health(status: Mapping[str, Any]) -> Finding:
    faults = []
    for node in status["nodes"]:
        if node["state"] in ("suspect", "gone"):
            faults.append(f"{node['name']} is {node['state']}")
        if node["version"] != __version__:
            faults.append(f"{node['name']} runs edgepp {node['version']}, this machine {__version__}")
        if abs(node["clock_offset_s"]) > _CLOCK_S:
            faults.append(f"the clock of {node['name']} is {node['clock_offset_s']:+.0f} s off")
    if status["state"] != "ready":
        faults.append(f"it is {status['state']}: {status['reason']}")
    if faults:
        return Finding("cluster", ok=False, found="; ".join(faults), do="see `edgepp status`")
    names = ", ".join(node["name"] for node in status["nodes"])
    return Finding("cluster", ok=True, found=f"ready with {names} at {time.strftime('%H:%M:%S')}", do="")
