"""`edgepp leave`: this machine belongs to its cluster no more; on the machine that serves, the cluster ends."""

from __future__ import annotations

import sys

import click

from edgepp.cluster.identity import Cluster, forget_cluster, load_cluster, load_identity
from edgepp.cluster.node_lock import node_lock_holder, wait_until_ended
from edgepp.coordinator.client import CoordinatorClient
from edgepp.errors import EdgeppError, PairingError, UsageError

_END_S = 20.0
"""How long what runs here has to end."""


def leave(*, sure: bool) -> None:
    """Forget this machine's cluster, wait until what runs here has ended, and tell the coordinator.

    Raises:
        UsageError: the cluster would end, and nobody is there to be asked.
        EdgeppError: it cannot be forgotten, or what runs here does not end.
    """
    identity = load_identity()
    cluster = load_cluster()
    if cluster is None:
        click.echo("this machine belongs to no cluster")
        return
    coordinates = cluster.coordinator.node == identity.node
    if coordinates and not sure:
        _ask(cluster)
    command = node_lock_holder()
    forget_cluster()
    if command and not wait_until_ended(_END_S):
        raise EdgeppError(
            f"the cluster is forgotten, but {command} has not ended within {_END_S:.0f} s", "end it there by Ctrl-C"
        )
    ended = f"; {command} has ended" if command else ""
    if coordinates:
        click.echo(f"the cluster of {cluster.coordinator.name} is no more{ended}")
        return
    click.echo(f"this machine has left the cluster of {cluster.coordinator.name}{ended}")
    try:
        with CoordinatorClient(identity, cluster) as served:
            served.call("leave")
    except PairingError:
        click.echo(
            f"{cluster.coordinator.name} did not admit it any more: it was revoked there, or that cluster has ended"
        )
    except EdgeppError:
        name = cluster.coordinator.name
        click.echo(f"{name} could not be told, and lists it until `edgepp revoke {identity.name}` there")


def _ask(cluster: Cluster) -> None:
    others = len(cluster.members)
    ends = "this machine coordinates its cluster, which ends when it leaves" + (
        f": {others} other machine{'s' if others > 1 else ''} would have to be invited again" if others else ""
    )
    if not sys.stdin.isatty():
        raise UsageError(ends, "add --yes if that is wanted")
    click.echo(ends)
    click.confirm("End the cluster?", abort=True)
