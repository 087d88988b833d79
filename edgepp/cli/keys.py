"""`edgepp keys`: the API keys of this machine's HTTP server."""

from __future__ import annotations

import click

from edgepp.cli.options import CommandGroup


@click.group(cls=CommandGroup)
def keys() -> None:
    """Make, list and revoke API keys of HTTP clients.

    A client of `edgepp serve` sends its key as `Authorization: Bearer KEY` or as `x-api-key: KEY`. Keys are demanded
    when other machines can reach the HTTP server, or with `edgepp serve --require-key`. A running server follows every
    change at once.
    """


@keys.command("add")
@click.argument("name")
@click.option(
    "--admin",
    "administers",
    is_flag=True,
    help="Let the holder of the key invite machines, drain nodes and change the model, from anywhere.",
)
@click.option("--json", "as_json", is_flag=True, help='Print {"name": ..., "key": ..., "administers": ...}.')
def add(name: str, *, administers: bool, as_json: bool) -> None:
    """Make a key, and print it once.

    NAME says who has the key: a person, program or machine. Requests under one key share the cluster as one owner.
    """
    from edgepp.ui.keys import add_key

    add_key(name, administers=administers, as_json=as_json)


@keys.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def list_(*, as_json: bool) -> None:
    """List the names of the keys. The keys themselves are stored nowhere."""
    from edgepp.ui.keys import list_keys

    list_keys(as_json=as_json)


@keys.command("revoke")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help='Print {"revoked": ...}.')
def revoke(name: str, *, as_json: bool) -> None:
    """Refuse the key NAME from now on."""
    from edgepp.ui.keys import revoke_key

    revoke_key(name, as_json=as_json)
