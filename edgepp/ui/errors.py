"""How an error looks on a terminal."""

from __future__ import annotations

from edgepp.errors import EdgeppError, StageLost
from edgepp.ui.screen import say


def show_error(error: EdgeppError) -> None:
    """One sentence and a next step, on standard error."""
    lead = "lost a stage: " if isinstance(error, StageLost) else ""
    say(f"error: {lead}{error}", red=True, err=True)
    if error.hint:
        say(f"  try: {error.hint}", err=True)
