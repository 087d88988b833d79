"""Commands about a cluster: who may join, who is there, how it fares."""

from __future__ import annotations

import json

import click


@click.command()
@click.option("--json", "as_json", is_flag=True, help='Print {"code": ...}.')
def invite(*, as_json: bool) -> None:
    """Print a code with which one other machine can join, within ten minutes."""
    from edgepp.ui.cluster import connect, show_invitation

    with connect() as served:
        show_invitation(served.call("invite"), as_json=as_json)


@click.command()
@click.option("--watch", is_flag=True, help="Keep showing it, until Ctrl-C.")
@click.option("--peer", metavar="HOST:PORT", help="Where `edgepp serve` runs, if it is not found.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object; one a line with --watch.")
def status(peer: str | None, *, watch: bool, as_json: bool) -> None:
    """Show the cluster: nodes, layers, memory, speed, links."""
    from edgepp.ui.status import show_status

    show_status(peer, watch=watch, as_json=as_json)


@click.command()
@click.option("--peer", metavar="HOST:PORT", help="Also check the way to the coordinator or stage there.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def doctor(peer: str | None, *, as_json: bool) -> None:
    """Check this machine, its network and the way to the others; each line says what to do."""
    from edgepp.ui.cluster import checks
    from edgepp.ui.doctor import run_doctor

    if not run_doctor(peer, as_json=as_json, extra=checks(peer)):
        raise SystemExit(1)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def peers(*, as_json: bool) -> None:
    """List the nodes that are paired with this cluster."""
    from edgepp.ui.cluster import connect, show_peers

    with connect() as served:
        show_peers(served.call("peers"), as_json=as_json)


@click.command()
@click.argument("node")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def revoke(node: str, *, as_json: bool) -> None:
    """Drop a node or token at once, and never let it in again. NODE is a name or an id from `edgepp peers`."""
    from edgepp.ui.cluster import connect
    from edgepp.ui.screen import say

    with connect() as served:
        answer = served.call("revoke", {"node": node})
    say(json.dumps(answer) if as_json else f"{answer['revoked']} is no member any more")


@click.command()
@click.option("--json", "as_json", is_flag=True, help='Print {"token": ..., "name": ...}.')
def token(*, as_json: bool) -> None:
    """Make a token for machines that nobody sits at: they join with it in EDGEPP_TOKEN."""
    from edgepp.ui.cluster import connect, show_token

    with connect() as served:
        show_token(served.call("token"), as_json=as_json)


@click.command()
def leave() -> None:
    """Forget this machine's cluster; its own key stays."""
    from edgepp.cluster.identity import forget_cluster
    from edgepp.ui.screen import say

    gone = forget_cluster()
    say(f"left the cluster of {gone.coordinator.name}" if gone else "this machine belongs to no cluster")
