"""`edgepp models`: list, show, pull and remove models."""

from __future__ import annotations

import json
import sys

import click

from edgepp.cli.options import CommandGroup, complete_models
from edgepp.errors import UsageError


@click.group(cls=CommandGroup)
def models() -> None:
    """List, inspect, download and remove models."""


@models.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def models_list(*, as_json: bool) -> None:
    """List the models that edgepp knows by name, smallest first.

    Any other model of a supported family also runs: name its Hugging Face repository or a folder.
    """
    from edgepp.ui.models import list_cards

    list_cards(as_json=as_json)


@models.command("show")
@click.argument("model", shell_complete=complete_models)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def models_show(model: str, *, as_json: bool) -> None:
    """Show the shape and the sizes of MODEL.

    MODEL is a name from `edgepp models list`, a Hugging Face repository (org/name) or a folder. The hub is asked only
    about a repository that is neither listed nor on this disk.
    """
    from edgepp.ui.models import show_model

    show_model(model, as_json=as_json)


@models.command("pull")
@click.argument("model", shell_complete=complete_models)
@click.option("--layers", metavar="A-B", help="Download only what a node with these layers needs, like 0-14.")
@click.option("--json", "as_json", is_flag=True, help='Print {"path": ...}.')
def models_pull(model: str, layers: str | None, *, as_json: bool) -> None:
    """Download MODEL, or the part for some layers, to the cache.

    `edgepp chat`, `serve` and `join` download what they need themselves; this command does so ahead of time.
    """
    from edgepp.layer_range import LayerRange
    from edgepp.model.fetch import fetch
    from edgepp.model.weights.model_parts import ALL_PARTS, ModelParts
    from edgepp.ui.progress import ByteProgress
    from edgepp.ui.screen import say

    parts = ALL_PARTS if layers is None else ModelParts(layers=LayerRange.parse(layers))
    with ByteProgress(quiet=as_json) as progress:
        path = fetch(model, parts, progress)
    say(json.dumps({"path": str(path)}) if as_json else f"{model} is in {path}")


@models.command("rm")
@click.argument("model", shell_complete=complete_models)
@click.option("--yes", is_flag=True, help="Remove without asking.")
@click.option("--json", "as_json", is_flag=True, help='Print {"model": ..., "path": ..., "freed_bytes": ...}.')
def models_rm(model: str, *, yes: bool, as_json: bool) -> None:
    """Remove MODEL from the cache, with unfinished downloads of it."""
    from edgepp.model.remove import bytes_on_disk, cached_folder, remove
    from edgepp.ui.progress import megabytes
    from edgepp.ui.screen import say

    folder = cached_folder(model)
    if not yes:
        if as_json or not sys.stdin.isatty():
            raise UsageError("nothing was removed: a terminal is needed to confirm", "add --yes")
        click.confirm(f"remove {megabytes(bytes_on_disk(folder))} in {folder}?", abort=True, err=True)
    freed = remove(model)
    facts = {"model": model, "path": str(folder), "freed_bytes": freed}
    say(json.dumps(facts) if as_json else f"{model} is removed: {megabytes(freed)} freed")
