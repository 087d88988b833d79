"""edgepp runs one language model on several machines.

    async with edgepp.Engine("smollm2-135m", stages=2) as engine:
        async for text in engine.ask("Why is the sky blue?"):
            print(text, end="")

    async with edgepp.connect() as cluster:
        answer = await cluster.ask("Why is the sky blue?").whole()
        print(answer.text, answer.finish_reason, answer.timing.decode_tokens_per_s)

    async with edgepp.serve("smollm2-135m") as cluster:  # and edgepp.join on other machines
        print(await cluster.invite())
        await cluster.ready()
        async with edgepp.HttpServer(cluster, edgepp.HttpOptions("127.0.0.1:8080")) as http:
            print(http.url)  # for clients of OpenAI, Anthropic and Ollama

Every error is an ``EdgeppError``: one sentence, with the next step in its ``hint``.
"""

import os

from edgepp.errors import (
    ContextExceeded,
    EdgeppError,
    InternalError,
    LocalProtocolError,
    ModelError,
    NotReady,
    Overloaded,
    PairingError,
    PeerLost,
    PlanError,
    PoisonedRequest,
    PromptRefused,
    ProtocolError,
    RemoteProtocolError,
    StageError,
    StageFault,
    StageLost,
    UsageError,
)
from edgepp.lazy_names import lazy_names

TYPE_CHECKING = False  # as in `typing`, without the time to import it
if TYPE_CHECKING:
    from edgepp import events
    from edgepp.engine.request import Constraint, GenerateOptions, SamplingOptions
    from edgepp.engine.ring import StageInfo
    from edgepp.engine.sampling import Sampled
    from edgepp.engine.timing import Timing
    from edgepp.http_api.http_options import HttpOptions
    from edgepp.http_api.server import HttpServer
    from edgepp.layer_range import LayerRange
    from edgepp.model.text.conversation import Conversation
    from edgepp.python_api import (
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

__version__ = "0.1.0"
__all__ = [
    "Answer",
    "Connection",
    "Constraint",
    "ContextExceeded",
    "Conversation",
    "EdgeppError",
    "Engine",
    "GenerateOptions",
    "HttpOptions",
    "HttpServer",
    "InternalError",
    "JoinedNode",
    "LayerRange",
    "LocalProtocolError",
    "LoneStage",
    "ModelError",
    "NotReady",
    "Overloaded",
    "PairingError",
    "PeerLost",
    "PlanError",
    "PoisonedRequest",
    "PromptRefused",
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
_LAZY = {
    "edgepp": ("events",),
    "edgepp.python_api": (
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
    "edgepp.engine.request": ("Constraint", "GenerateOptions", "SamplingOptions"),
    "edgepp.engine.ring": ("StageInfo",),
    "edgepp.engine.sampling": ("Sampled",),
    "edgepp.engine.timing": ("Timing",),
    "edgepp.http_api.http_options": ("HttpOptions",),
    "edgepp.http_api.server": ("HttpServer",),
    "edgepp.layer_range": ("LayerRange",),
    "edgepp.model.text.conversation": ("Conversation",),
}

# Libraries read these when they are imported: no telemetry, and no remarks of transformers on the terminal.
for _switch in ("ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY", "TRANSFORMERS_NO_ADVISORY_WARNINGS"):
    os.environ.setdefault(_switch, "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


__getattr__ = lazy_names(__name__, _LAZY)


def __dir__() -> list[str]:
    """All public names, with those that are not imported yet."""
    return sorted({*globals(), *__all__})
