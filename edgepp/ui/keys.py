"""Output of `edgepp keys`."""

from __future__ import annotations

import time

import click

from edgepp.http_api import api_keys
from edgepp.ui.screen import Rows, Screen, say, say_json


def add_key(name: str, *, administers: bool, as_json: bool) -> None:
    """Make a key with this name, and print the key; with ``administers`` the key may also change the cluster.

    Raises:
        UsageError: the name is malformed or in use, or there are too many keys.
        EdgeppError: the file of keys cannot be read or written.
    """
    secret = api_keys.add_key(name, administers=administers)
    if as_json:
        say_json({"name": name, "key": secret, "administers": administers})
        return
    say(f"The key of {name}, which is not shown again:\n\n    {secret}\n")
    click.echo("Clients send it as an API key, that is as `Authorization: Bearer KEY` or `x-api-key: KEY`.")


def list_keys(*, as_json: bool) -> None:
    """Print the names of all keys, oldest key first.

    Raises:
        EdgeppError: the file of keys is damaged, other users may read it, or it cannot be read.
    """
    keys = api_keys.load_keys()
    if as_json:
        told = [{"name": key.name, "created_s": key.created_s, "administers": key.administers} for key in keys]
        say_json({"keys": told})
        return
    if not keys:
        click.echo("There is no key; `edgepp keys add NAME` makes one.")
        return
    table = Rows("NAME", "MADE", "MAY")
    for key in keys:
        made = time.strftime("%Y-%m-%d %H:%M", time.localtime(key.created_s))
        table.add_row(key.name, made, "ask and administer" if key.administers else "ask")
    Screen().show(table)


def revoke_key(name: str, *, as_json: bool) -> None:
    """Revoke the key with this name, and print a confirmation.

    Raises:
        UsageError: there is no such key.
        EdgeppError: the file of keys cannot be read or written.
    """
    api_keys.revoke_key(name)
    if as_json:
        say_json({"revoked": name})
        return
    say(f"{name} is revoked: its next request is refused, also by a server that runs")
