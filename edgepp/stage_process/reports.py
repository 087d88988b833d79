"""Reports of a stage process on its standard output, one JSON object per line."""

from __future__ import annotations

import json
import sys


def report(event: str, **fields: object) -> None:
    """Write one report."""
    sys.stdout.write(json.dumps({"event": event, **fields}) + "\n")
    sys.stdout.flush()
