"""Commands about a cluster: who may join, who is there, how it fares."""

from __future__ import annotations

import click


@click.command()
@click.option("--json", "as_json", is_flag=True, help='Print {"code": ...}.')
def invite(*, as_json: bool) -> None:
    """Print a code with which one other machine can join, within ten minutes."""
    from edgepp.ui.peers import connect, show_invitation

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
    from edgepp.ui.doctor import run_doctor
    from edgepp.ui.peers import checks

    if not run_doctor(peer, as_json=as_json, extra=checks(peer)):
        raise SystemExit(1)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def peers(*, as_json: bool) -> None:
    """List the nodes that are paired with this cluster, its tokens, and what was revoked."""
    from edgepp.ui.peers import connect, show_peers

    with connect() as served:
        show_peers(served.call("peers"), as_json=as_json)


@click.command()
@click.argument("node")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def revoke(node: str, *, as_json: bool) -> None:
    """Drop a node or token at once. NODE is a name or an id from `edgepp peers`.

    A revoked machine is let in again by a new code of `edgepp invite` only, never by a token. A revoked token lets
    nobody in any more; the machines that came by it stay.
    """
    from edgepp.ui.peers import connect, show_revoked

    with connect() as served:
        show_revoked(served.call("revoke", {"node": node}), as_json=as_json)


@click.command()
@click.option("--json", "as_json", is_flag=True, help='Print {"token": ..., "name": ...}.')
def token(*, as_json: bool) -> None:
    """Make a token for machines that nobody sits at: they join with it in EDGEPP_TOKEN.

    `edgepp peers` lists tokens and who came by them; `edgepp revoke token-1` withdraws one.
    """
    from edgepp.ui.peers import connect, show_token

    with connect() as served:
        show_token(served.call("token"), as_json=as_json)


@click.command()
@click.option("--yes", is_flag=True, help="Do not ask, also where the cluster ends by it.")
def leave(*, yes: bool) -> None:
    """Leave this machine's cluster for good; what runs here ends, the machine's own key stays.

    Another code or token lets it in again. On the machine where `edgepp serve` runs the whole cluster ends, so it asks
    first. To stop without leaving, press Ctrl-C where `edgepp join` or `edgepp serve` runs.
    """
    from edgepp.ui import leave as ui

    ui.leave(sure=yes)
