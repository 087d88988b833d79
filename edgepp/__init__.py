"""edgepp: one language model on the machines you have."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgepp.api import Answer, Connection, Engine, connect
    from edgepp.engine.request import Constraint, GenerateOptions, SamplingOptions

__version__ = "0.1.0"
__all__ = [
    "Answer",
    "Connection",
    "Constraint",
    "Engine",
    "GenerateOptions",
    "SamplingOptions",
    "__version__",
    "connect",
]

# Libraries that would report home on a user's behalf, unless told before they are imported.
for _switch in ("ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY"):
    os.environ.setdefault(_switch, "1")


def __getattr__(name: str) -> Any:
    """The Python interface, imported when it is first asked for: `edgepp --help` needs none of it."""
    if name not in __all__:
        raise AttributeError(f"module 'edgepp' has no attribute '{name}'")
    from edgepp import api
    from edgepp.engine import request

    return getattr(api, name, None) or getattr(request, name)
