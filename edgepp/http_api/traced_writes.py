"""The last part of a traced request: the writes to the client, and the id by which the client knows the answer."""

from __future__ import annotations

import time

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgepp.http_api.endpoint import request_id
from edgepp.tracing.request_trace import RequestTrace, TraceLog

_ANSWER_ID = "answer_id"


def name_answer(request: Request, answer_id: str) -> None:
    """Note the id of the answer to ``request``, such as ``chatcmpl-…``, by which its trace can be found too."""
    request.scope.setdefault("state", {})[_ANSWER_ID] = answer_id


class TracedWrites:
    """Middleware that records the time of each write of a response in the trace of its request."""

    def __init__(self, app: ASGIApp, traces: TraceLog) -> None:
        self._app = app
        self._traces = traces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""

        trace: RequestTrace | None = None

        async def send_traced(message: Message) -> None:
            nonlocal trace
            if message["type"] == "http.response.start":  # a response starts once its answer has begun
                trace = self._traces.find(request_id(Request(scope)))
                answer_id = scope.get("state", {}).get(_ANSWER_ID)
                if trace is not None and answer_id is not None:
                    trace.aliases.append(answer_id)
            began_s = time.perf_counter()
            await send(message)
            if trace is not None and message["type"] == "http.response.body":
                trace.span("write", began_s, time.perf_counter(), len(message.get("body", b"")))

        await self._app(scope, receive, send_traced)
