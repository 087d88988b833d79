"""Commands about a cluster: invite, status, use, doctor, peers, revoke, token, drain, leave."""

from __future__ import annotations

import click

from edgepp.cli.options import complete_models


@click.command()
@click.option("--json", "as_json", is_flag=True, help='Print {"code": ..., "peers": [...]}.')
def invite(*, as_json: bool) -> None:
    """Print a code that lets one other machine join.

    The code is valid once, for ten minutes, while `edgepp serve` runs. For machines without a keyboard see
    `edgepp token`.
    """
    from edgepp.ui.peers import connect, show_invitation

    with connect() as client:
        show_invitation(client.call("invite"), as_json=as_json)


@click.command()
@click.option("--watch", is_flag=True, help="Refresh every second until Ctrl-C.")
@click.option("--peer", metavar="HOST:PORT", help="Address of `edgepp serve`, like 10.0.0.2:5700, if it is not found.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object; with --watch one per line.")
def status(peer: str | None, *, watch: bool, as_json: bool) -> None:
    """Show the nodes and stages of the cluster.

    \b
    NODE   MEMORY: what the model may use; FREE: free memory at present
           STREAM, GFLOP/S: measured memory bandwidth and compute rate
           RTT: round trip between the coordinator and the node
    STAGE  STATE: waiting, loading or ready; IN MEMORY: weights
           KV, SEQUENCES: size of the KV caches, and how many there are
           STAGE, WIRE: time per decode step in the stage and on the link
    """
    from edgepp.ui.status import show_status

    show_status(peer, watch=watch, as_json=as_json)


@click.command()
@click.option("--peer", metavar="HOST:PORT", help="Also check the connection to this coordinator or stage.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def doctor(peer: str | None, *, as_json: bool) -> None:
    """Check this machine, its network and its cluster.

    Each line begins with ok, with !! for a fault, or with -- for a remark; an arrow gives the next step. The exit
    status is 1 if there is a fault.
    """
    from edgepp.ui.doctor import run_doctor
    from edgepp.ui.peers import checks

    if not run_doctor(peer, as_json=as_json, extra=checks(peer)):
        raise SystemExit(1)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def peers(*, as_json: bool) -> None:
    """List paired nodes, tokens, and what was revoked."""
    from edgepp.ui.peers import connect, show_peers

    with connect() as client:
        show_peers(client.call("peers"), as_json=as_json)


@click.command()
@click.argument("node")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def revoke(node: str, *, as_json: bool) -> None:
    """Remove a node or a token from the cluster at once.

    NODE is a name or an id from `edgepp peers`.

    A revoked machine can join again only by a new code of `edgepp invite`, not by a token. A revoked token lets no
    further machine join; machines that joined by it stay.
    """
    from edgepp.ui.peers import connect, show_revoked

    with connect() as client:
        show_revoked(client.call("revoke", {"node": node}), as_json=as_json)


@click.command()
@click.option("--json", "as_json", is_flag=True, help='Print {"token": ..., "name": ...}.')
def token(*, as_json: bool) -> None:
    """Make a token that lets unattended machines join.

    The machines join with the token in EDGEPP_TOKEN, or in the file that EDGEPP_TOKEN_FILE names. `edgepp peers` lists
    tokens and the nodes that joined by each; `edgepp revoke token-1` withdraws one.
    """
    from edgepp.ui.peers import connect, show_token

    with connect() as client:
        show_token(client.call("token"), as_json=as_json)


@click.command()
@click.argument("model", shell_complete=complete_models)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per step; the last has event ready.")
def use(model: str, *, as_json: bool) -> None:
    """Change the model of the cluster while it runs.

    MODEL is a name from `edgepp models list`, a Hugging Face repository (org/name), or a folder in mlx-lm format.

    Works only on the machine of `edgepp serve`. Answers under way end first, for a minute at most; new questions wait.
    If the model cannot be downloaded, or does not fit into the memory of the nodes, the former model goes on.
    """
    from edgepp.ui import use as ui

    ui.use(model, as_json=as_json)


@click.command()
@click.argument("node")
@click.option("--undo", is_flag=True, help="Let a drained node run layers again.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object per step; the last has event drained or undone."
)
def drain(node: str, *, undo: bool, as_json: bool) -> None:
    """Move a node's layers to other nodes, before it is stopped.

    NODE is a name or an id from `edgepp status`.

    Works only on the machine of `edgepp serve`. The node stays in the cluster and gets no layers until `--undo`, or
    until the node is started again. Nothing changes if the other nodes have too little memory.
    """
    from edgepp.ui import drain as ui

    ui.drain(node, undo=undo, as_json=as_json)


@click.command()
@click.option("--yes", is_flag=True, help="Leave without asking, even if that ends the cluster.")
def leave(*, yes: bool) -> None:
    """Leave the cluster for good, and stop the node here.

    A new code or token lets the machine join again. On the machine of `edgepp serve` this ends the whole cluster, after
    a question. To stop without leaving, press Ctrl-C where `edgepp join` or `edgepp serve` runs.
    """
    from edgepp.ui import leave as ui

    ui.leave(sure=yes)
