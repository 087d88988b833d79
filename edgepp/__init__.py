"""edgepp: one language model on the machines you have.

    async with edgepp.Engine("smollm2-135m", stages=2) as engine:
        async for text in engine.ask("Why is the sky blue?"):
            print(text, end="")

    async with edgepp.connect() as cluster:
        answer = await cluster.ask("Why is the sky blue?").whole()
        print(answer.text, answer.finish_reason, answer.timing.decode_tokens_per_s)

    async with edgepp.serve("smollm2-135m") as cluster:  # and edgepp.join on other machines
        print(await cluster.invite())
        await cluster.ready()

Whatever is wrong is an ``EdgeppError``: one sentence, and in its ``hint`` the next step.
"""

import os

from edgepp.errors import (
    EdgeppError,
    InternalError,
    LocalProtocolError,
    ModelError,
    PairingError,
    PeerLost,
    PlanError,
    ProtocolError,
    RemoteProtocolError,
    StageError,
    StageFault,
    StageLost,
    UsageError,
)

TYPE_CHECKING = False  # as in `typing`, whose import `edgepp --help` need not wait for
if TYPE_CHECKING:
    from edgepp import events
    from edgepp.api import (
        Answer,
        Connection,
        Engine,
        JoinedNode,
        LoneStage,
        ServedCluster,
        connect,
        join,
        serve,
        stage,
    )
    from edgepp.engine.request import Constraint, GenerateOptions, SamplingOptions, Timing
    from edgepp.engine.ring import StageInfo
    from edgepp.engine.sampling import Sampled
    from edgepp.layers import LayerRange

__version__ = "0.1.0"
__all__ = [
    "Answer",
    "Connection",
    "Constraint",
    "EdgeppError",
    "Engine",
    "GenerateOptions",
    "InternalError",
    "JoinedNode",
    "LayerRange",
    "LocalProtocolError",
    "LoneStage",
    "ModelError",
    "PairingError",
    "PeerLost",
    "PlanError",
    "ProtocolError",
    "RemoteProtocolError",
    "Sampled",
    "SamplingOptions",
    "ServedCluster",
    "StageError",
    "StageFault",
    "StageInfo",
    "StageLost",
    "Timing",
    "UsageError",
    "__version__",
    "connect",
    "events",
    "join",
    "serve",
    "stage",
]
_LATER = {
    "edgepp": ("events",),
    "edgepp.api": (
        "Answer",
        "Connection",
        "Engine",
        "JoinedNode",
        "LoneStage",
        "ServedCluster",
        "connect",
        "join",
        "serve",
        "stage",
    ),
    "edgepp.engine.request": ("Constraint", "GenerateOptions", "SamplingOptions", "Timing"),
    "edgepp.engine.ring": ("StageInfo",),
    "edgepp.engine.sampling": ("Sampled",),
    "edgepp.layers": ("LayerRange",),
}

# Libraries would report home on a user's behalf, and transformers would remark on the terminal, unless told before they
# are imported.
for _switch in ("ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY", "TRANSFORMERS_NO_ADVISORY_WARNINGS"):
    os.environ.setdefault(_switch, "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def __getattr__(name: str) -> object:
    """The Python interface, imported when it is first asked for: `edgepp --help` needs none of it."""
    for module, names in _LATER.items():
        if name in names:
            from importlib import import_module

            return import_module(f"{module}.{name}") if module == "edgepp" else getattr(import_module(module), name)
    raise AttributeError(f"module 'edgepp' has no attribute '{name}'")


def __dir__() -> list[str]:
    """Names that are imported later are there all the same."""
    return sorted({*globals(), *__all__})
