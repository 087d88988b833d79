"""The Python interface of edgepp, for ``asyncio``: the work of the commands, for programs.

    async with edgepp.Engine("smollm2-135m", stages=2) as engine:
        async for text in engine.ask("Why is the sky blue?"):
            print(text, end="")

    async with edgepp.connect() as cluster:
        answer = await cluster.ask("Why is the sky blue?").whole()
        print(answer.text, answer.finish_reason, answer.timing.decode_tokens_per_s)

    async with edgepp.serve("smollm2-135m") as cluster:  # on one machine
        print(await cluster.invite())
        async for event in cluster.events():
            print(event)

    async with edgepp.join("7-tango-lemon") as node:  # on another
        async for event in node.events():
            print(event)

Several answers may be read at once; the engine batches them. Leaving the loop over an answer cancels the rest of it.
Every error is an ``EdgeppError``: one sentence, with the next step in its ``hint``.
"""

from typing import TYPE_CHECKING

from edgepp.lazy_names import lazy_names

if TYPE_CHECKING:
    from edgepp.python_api.answer import Answer
    from edgepp.python_api.connection import Connection, connect
    from edgepp.python_api.engine import Engine
    from edgepp.python_api.joining import JoinedNode, LoneStage, join, stage
    from edgepp.python_api.question import MAX_CHOICES, Question
    from edgepp.python_api.served_cluster import ServedCluster
    from edgepp.python_api.serving import serve

__all__ = [
    "MAX_CHOICES",
    "Answer",
    "Connection",
    "Engine",
    "JoinedNode",
    "LoneStage",
    "Question",
    "ServedCluster",
    "connect",
    "join",
    "serve",
    "stage",
]

__getattr__ = lazy_names(
    __name__,
    {
        "edgepp.python_api.answer": ("Answer",),
        "edgepp.python_api.connection": ("Connection", "connect"),
        "edgepp.python_api.engine": ("Engine",),
        "edgepp.python_api.joining": ("JoinedNode", "LoneStage", "join", "stage"),
        "edgepp.python_api.question": ("MAX_CHOICES", "Question"),
        "edgepp.python_api.served_cluster": ("ServedCluster",),
        "edgepp.python_api.serving": ("serve",),
    },
)
