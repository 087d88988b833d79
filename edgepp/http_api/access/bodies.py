"""Bodies: read in pieces within bounds of size and time, whole before the application runs."""

from __future__ import annotations

import asyncio
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgepp.http_api.access.json_shape import exceeds
from edgepp.http_api.access.refusal import CLOSE, refuse
from edgepp.http_api.access.request_head import header
from edgepp.http_api.failures import RequestError
from edgepp.http_api.http_options import Limits

_BUSY_S = 1.0


class _Gone(Exception):  # noqa: N818 - not an error of anybody
    """The client has closed its connection."""


class Bodies:
    """Middleware that reads the body of a request, and gives it to the application in one piece."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app = app
        self._limits = limits
        self._held_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        taken = _Taken(self)
        try:
            body = await self._read(scope, receive, taken)
        except RequestError as error:
            return await refuse(error, scope, receive, send, CLOSE if taken.too_slow else {})
        except _Gone:
            return None
        try:
            await self._app(scope, _replay(body, receive), send)
        finally:
            taken.give_back()
        return None

    async def _read(self, scope: Scope, receive: Receive, taken: _Taken) -> bytes:
        """The whole body.

        Raises:
            RequestError: the body is too large, too slow or too complex, or all bodies together are too large.
            _Gone: the client has closed its connection.
        """
        try:
            declared = header(scope, "content-length") or ""
            if declared.isdecimal() and int(declared[:20]) > self._limits.body_bytes:
                raise self._too_large()
            body = await self._received(receive, taken)
            shape = exceeds(body, self._limits.json_levels, self._limits.json_values)
            if shape is not None:
                raise RequestError("invalid_request", shape, "send a simpler body")
        except BaseException:
            taken.give_back()
            raise
        return body

    async def _received(self, receive: Receive, taken: _Taken) -> bytes:
        pieces: list[bytes] = []
        until_s = time.monotonic() + self._limits.body_s
        more = True
        while more:
            try:
                async with asyncio.timeout(min(self._limits.body_gap_s, until_s - time.monotonic())):
                    message = await receive()
            except TimeoutError as error:
                taken.too_slow = True
                raise RequestError("invalid_request", "the body came too slowly", "send the request again") from error
            if message["type"] == "http.disconnect":
                raise _Gone
            piece, more = message.get("body", b""), message.get("more_body", False)
            if taken.num_bytes + len(piece) > self._limits.body_bytes:
                raise self._too_large()
            taken.take(len(piece))
            pieces.append(piece)
        return b"".join(pieces)

    def _too_large(self) -> RequestError:
        limit = self._limits.body_bytes >> 20
        return RequestError("request_too_large", f"the body is larger than {limit} MiB", "shorten the conversation")

    def hold(self, num_bytes: int) -> None:
        """Count bytes that a request holds, or gives back.

        Raises:
            RequestError: all requests together hold too many bytes.
        """
        if num_bytes > 0 and self._held_bytes + num_bytes > self._limits.all_bodies_bytes:
            raise RequestError(
                "overloaded", "the server holds too many large requests", "try again", retry_after_s=_BUSY_S
            )
        self._held_bytes += num_bytes


class _Taken:
    """Bytes that one request holds."""

    def __init__(self, bodies: Bodies) -> None:
        self._bodies = bodies
        self.num_bytes = 0
        self.too_slow = False
        """Whether the client has stopped to send."""

    def take(self, num_bytes: int) -> None:
        """Hold more bytes.

        Raises:
            RequestError: all requests together hold too many bytes.
        """
        self._bodies.hold(num_bytes)
        self.num_bytes += num_bytes

    def give_back(self) -> None:
        """Give back all bytes that the request holds."""
        self._bodies.hold(-self.num_bytes)
        self.num_bytes = 0


def _replay(body: bytes, receive: Receive) -> Receive:
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return waiting.pop() if waiting else await receive()

    return replayed
