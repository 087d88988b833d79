"""Number of examples that hypothesis tries of a property: all in a run that explores, a quarter in other runs."""

from __future__ import annotations

import os

EXPLORES = os.environ.get("EDGEPP_EXAMPLES") == "explore"
"""Whether this run looks for new examples, as `make fuzz` does; else each run repeats the same ones."""
_FEWEST = 5


def examples(number: int) -> int:
    """``number`` where new examples are looked for, else a quarter of it."""
    return number if EXPLORES else max(_FEWEST, number // 4)
