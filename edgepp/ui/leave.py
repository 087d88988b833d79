"""`edgepp leave`: this machine leaves its cluster; on the coordinator the cluster ends."""

from __future__ import annotations

import sys

import click

from edgepp.cluster.identity import Cluster, forget_cluster, load_cluster, load_identity
from edgepp.cluster.node_lock import node_lock_holder, wait_until_ended
from edgepp.coordinator.client import CoordinatorClient
from edgepp.errors import EdgeppError, PairingError, UsageError

_STOP_TIMEOUT_S = 20.0
"""Longest wait for the end of a running `edgepp join` or `edgepp serve` of this machine."""


def leave(*, sure: bool) -> None:
    """Forget the cluster of this machine, wait until its node has ended, and inform the coordinator.

    ``sure`` asks no question on the machine that coordinates, where the cluster ends.

    Raises:
        UsageError: the cluster would end, and there is no terminal to confirm.
        EdgeppError: the cluster cannot be forgotten, or the node does not end.
    """
    identity = load_identity()
    cluster = load_cluster()
    if cluster is None:
        click.echo("this machine belongs to no cluster: there is nothing to leave")
        return
    coordinates = cluster.coordinator.node == identity.node
    if coordinates and not sure:
        _ask(cluster)
    holder = node_lock_holder()
    forget_cluster()
    if holder and not wait_until_ended(_STOP_TIMEOUT_S):
        raise EdgeppError(
            f"this machine has left the cluster, but {holder} still runs after {_STOP_TIMEOUT_S:.0f} s",
            "stop it by Ctrl-C in its terminal",
        )
    ended = f"; {holder} has ended" if holder else ""
    if coordinates:
        click.echo(f"the cluster of {cluster.coordinator.name} has ended{ended}")
        return
    click.echo(f"this machine has left the cluster of {cluster.coordinator.name}{ended}")
    try:
        with CoordinatorClient(identity, cluster) as client:
            client.call("leave")
    except PairingError:
        click.echo(
            f"{cluster.coordinator.name} did not admit this machine: it was revoked there, or the cluster has ended"
        )
    except EdgeppError:
        name = cluster.coordinator.name
        click.echo(f"{name} was not reached, and lists this machine until `edgepp revoke {identity.name}` runs there")


def _ask(cluster: Cluster) -> None:
    others = len(cluster.members)
    ends = "this machine coordinates its cluster, so leaving ends the cluster" + (
        f", and {others} other machine{'s' if others > 1 else ''} must be invited again" if others else ""
    )
    if not sys.stdin.isatty():
        raise UsageError(ends, "add --yes to end the cluster")
    click.echo(ends)
    click.confirm("End the cluster?", abort=True)
