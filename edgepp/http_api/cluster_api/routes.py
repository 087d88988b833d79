"""The routes of the cluster: its view, a feed of its changes, the planner's answers, invitations and drains."""

from __future__ import annotations

import asyncio
import io
from typing import Annotated

import msgspec
import segno
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from edgepp.http_api.cluster_api.feed import Feed
from edgepp.http_api.cluster_api.plan_answer import PlanBody, choices, plan_answer
from edgepp.http_api.endpoint import json_response, may_administer, read_body
from edgepp.http_api.failures import RequestError
from edgepp.http_api.model_service import ModelService
from edgepp.http_api.openai_api.errors import FORM
from edgepp.http_api.operation import Operation
from edgepp.python_api.served_cluster import Invitation

_MAX_QUESTIONS = 8
"""Questions to the planner that may wait."""


class DrainBody(msgspec.Struct, frozen=True):
    """The node to drain."""

    node: Annotated[str, msgspec.Meta(min_length=1, max_length=100)]
    """Name of the node, its id, or the first four or more digits of the id."""
    undo: bool = False
    """Let the node run layers again."""


def routes(service: ModelService) -> list[BaseRoute]:
    """The routes over ``service``."""
    feed, planner = Feed(service), _Planner(service)

    async def view(request: Request) -> Response:
        return json_response(feed.view(administers=may_administer(request)))

    async def told_choices(_: Request) -> Response:
        return json_response(choices())

    async def plan(request: Request) -> Response:
        return json_response(await planner.answer(await read_body(request, PlanBody)))

    async def invite(_: Request) -> Response:
        return json_response(_told(await service.invite()))

    async def drain(request: Request) -> Response:
        body = await read_body(request, DrainBody)
        return json_response(await service.drain(body.node, undo=body.undo))

    def operation(method: str, path: str, handler: object, summary: str, **more: object) -> Operation:
        return Operation(method, f"/v1/cluster{path}", handler, FORM, summary=summary, **more)  # type: ignore[arg-type]

    return [
        operation("GET", "", view, "The cluster as it is now."),
        operation("GET", "/events", feed.respond, "The same as server-sent events: a snapshot, then what changes."),
        operation("GET", "/choices", told_choices, "Models and hardware that the planner knows by name."),
        operation("POST", "/plan", plan, "What the planner says, with other machines too.", body=PlanBody),
        operation("POST", "/invite", invite, "A code that lets one machine join.", administers=True),
        operation("POST", "/drain", drain, "Take a node's layers away, or undo it.", body=DrainBody, administers=True),
    ]


class _Planner:
    """A queue of questions, answered one at a time in a thread, since tokens of answers need the processor too."""

    def __init__(self, service: ModelService) -> None:
        self._service = service
        self._turn = asyncio.Lock()
        self._waiting = 0

    async def answer(self, body: PlanBody) -> dict[str, object]:
        if self._waiting >= _MAX_QUESTIONS:
            raise RequestError("overloaded", "many questions wait for the planner", "ask again", retry_after_s=1.0)
        self._waiting += 1
        try:
            async with self._turn:
                return await asyncio.to_thread(plan_answer, body, self._service.status())
        finally:
            self._waiting -= 1


def _told(invitation: Invitation) -> dict[str, object]:
    """An invitation: its code, the command by which the other machine joins, and the command as a QR code."""
    peer = f" --peer {invitation.addresses[0]}" if invitation.addresses else ""
    command = f"edgepp join {invitation.code}"
    return {
        "code": invitation.code,
        "expires_in_s": invitation.expires_in_s,
        "command": command,
        "command_without_multicast": command + peer,
        "addresses": list(invitation.addresses),
        "qr_svg": qr_svg(command + peer),
    }


def qr_svg(text: str) -> str:
    """A QR code of ``text`` as an SVG image: dark on light, whatever the page's colours, so that cameras read it."""
    image = io.BytesIO()
    segno.make(text, error="m").save(image, kind="svg", border=4, dark="#000", light="#fff", xmldecl=False, scale=4)
    return image.getvalue().decode()
