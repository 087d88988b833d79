"""How an error looks on a terminal."""

from __future__ import annotations

import click

from edgepp.errors import EdgeppError, StageLost
from edgepp.printable import printable


def show_error(error: EdgeppError) -> None:
    """One sentence and a next step, on standard error."""
    lead = "lost a stage: " if isinstance(error, StageLost) else ""
    click.secho(f"error: {lead}{printable(str(error))}", fg="red", err=True)
    if error.hint:
        click.echo(f"  try: {printable(error.hint)}", err=True)
