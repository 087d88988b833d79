"""Printing an error: one sentence and the next step."""

from __future__ import annotations

from edgepp.errors import EdgeppError, ModelError, StageLost, UsageError
from edgepp.printable import one_line
from edgepp.ui.screen import say

_PLAIN_STEPS = (
    (UsageError, "see the options with `edgepp --help` or `edgepp COMMAND --help`"),
    (ModelError, "download the model again from where it was published, or use another model"),
)
"""Next steps after errors without a hint, by class of error."""
_MAX_LENGTH = 2000
"""Characters of a message that are shown: it may quote an argument, which may be as long as a file."""


def next_step(error: EdgeppError) -> str:
    """The hint of an error, or a general one for errors of its class; empty if there is neither."""
    return error.hint or next((step for kind, step in _PLAIN_STEPS if isinstance(error, kind)), "")


def show_error(error: EdgeppError) -> None:
    """Print message and next step of an error on standard error, each on one line even if a name has a line break."""
    lead = "lost a stage: " if isinstance(error, StageLost) else ""
    say(f"error: {lead}{one_line(str(error), _MAX_LENGTH)}", red=True, err=True)
    if step := next_step(error):
        say(f"  try: {one_line(step)}", err=True)
