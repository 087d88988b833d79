"""How an error looks on a terminal."""

from __future__ import annotations

from edgepp.errors import EdgeppError, ModelError, StageLost, UsageError
from edgepp.printable import one_line
from edgepp.ui.screen import say

_PLAIN_STEPS = (
    (UsageError, "`edgepp --help` and `edgepp COMMAND --help` say what each option takes"),
    (ModelError, "take the model from where it was published, or use another copy of it"),
)


def next_step(error: EdgeppError) -> str:
    """What to do next: the error's hint, or what helps with any error of its kind; empty where nothing does."""
    return error.hint or next((step for kind, step in _PLAIN_STEPS if isinstance(error, kind)), "")


def show_error(error: EdgeppError) -> None:
    """One sentence and a next step, on standard error; a name with newlines in it stays on its line."""
    lead = "lost a stage: " if isinstance(error, StageLost) else ""
    say(f"error: {lead}{one_line(str(error))}", fg="red", err=True)
    if step := next_step(error):
        say(f"  try: {one_line(step)}", err=True)
