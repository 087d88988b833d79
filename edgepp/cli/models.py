"""`edgepp models`."""

from __future__ import annotations

import json
import sys

import click

from edgepp.cli.options import CommandGroup
from edgepp.errors import UsageError


@click.group(cls=CommandGroup)
def models() -> None:
    """Models that edgepp knows, and what of them is on this disk."""


@models.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def models_list(*, as_json: bool) -> None:
    """List the models with a card."""
    from edgepp.ui.models import list_cards

    list_cards(as_json=as_json)


@models.command("show")
@click.argument("model")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def models_show(model: str, *, as_json: bool) -> None:
    """Show a model's shape and sizes. Asks the hub only where it has no card and is not on this disk."""
    from edgepp.ui.models import show_model

    show_model(model, as_json=as_json)


@models.command("pull")
@click.argument("model")
@click.option("--layers", metavar="A-B", help="Only what a node with these layers needs.")
@click.option("--json", "as_json", is_flag=True, help='End with {"path": ...}.')
def models_pull(model: str, layers: str | None, *, as_json: bool) -> None:
    """Fetch a model, or one node's part of it, into the cache."""
    from edgepp.layers import LayerRange
    from edgepp.model.fetch import fetch
    from edgepp.model.weights.model_parts import ALL_PARTS, ModelParts
    from edgepp.ui.progress import ByteProgress
    from edgepp.ui.screen import say

    parts = ALL_PARTS if layers is None else ModelParts(layers=LayerRange.parse(layers))
    with ByteProgress(quiet=as_json) as progress:
        path = fetch(model, parts, progress)
    say(json.dumps({"path": str(path)}) if as_json else f"{model} is in {path}")


@models.command("rm")
@click.argument("model")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help='Print {"model": ..., "path": ..., "freed_bytes": ...}.')
def models_rm(model: str, *, yes: bool, as_json: bool) -> None:
    """Remove a model from the cache, with whatever came of it in part."""
    from edgepp.model.remove import bytes_on_disk, cached_folder, remove
    from edgepp.ui.progress import megabytes
    from edgepp.ui.screen import say

    folder = cached_folder(model)
    if not yes:
        if as_json or not sys.stdin.isatty():
            raise UsageError("nothing was removed: there is nobody to ask", "add --yes")
        click.confirm(f"remove {megabytes(bytes_on_disk(folder))} in {folder}?", abort=True, err=True)
    freed = remove(model)
    facts = {"model": model, "path": str(folder), "freed_bytes": freed}
    say(json.dumps(facts) if as_json else f"{model} is removed: {megabytes(freed)} are free again")
