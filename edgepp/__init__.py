"""edgepp: one language model on the machines you have."""

import os

__version__ = "0.1.0"

# Libraries that would report home on a user's behalf, unless told before they are imported.
for _switch in ("ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY"):
    os.environ.setdefault(_switch, "1")
