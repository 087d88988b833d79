"""``POST /v1/models/load``: the cluster changes its model, for everybody, and keeps the old one if the change fails.

``access.administration`` decides which requests may change the model.
"""

from __future__ import annotations

import asyncio
from typing import Annotated

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from edgepp.http_api.endpoint import Handler, json_response, read_body, unless_gone
from edgepp.http_api.model_service import ModelService
from edgepp.http_api.openai_api.errors import error_form
from edgepp.http_api.operation import Operation


class LoadBody(msgspec.Struct, frozen=True):
    """The model to run."""

    model: Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
    wait: bool = True
    """Whether the response comes when the model answers, or at once; /health tells the progress of the load."""


def routes(service: ModelService) -> list[BaseRoute]:
    """The routes over ``service``."""
    load, form = load_model(service), error_form(service)
    return [
        Operation("POST", "/v1/models/load", load, form, summary="Change the model.", body=LoadBody, administers=True)
    ]


def load_model(service: ModelService) -> Handler:
    """The handler over ``service``."""
    unfinished: set[asyncio.Future[None]] = set()

    async def load(request: Request) -> Response:
        body = await read_body(request, LoadBody)
        loading = asyncio.ensure_future(service.load(body.model))
        unfinished.add(loading)  # the event loop itself keeps no reference
        loading.add_done_callback(unfinished.discard)
        loading.add_done_callback(lambda done: done.cancelled() or done.exception())
        if not body.wait:
            await asyncio.wait([loading], timeout=0.2)  # a name that is unknown is refused at once
            if not loading.done():
                return json_response({"status": "loading", "model": body.model}, 202)
        await unless_gone(request, asyncio.shield(loading))
        model = service.model
        return json_response({"status": "loaded", "model": model.name, "context_length": model.context})

    return load
