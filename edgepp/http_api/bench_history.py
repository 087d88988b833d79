"""``/bench/history``: rates that `edgepp bench` measured on the coordinator's machine, over commits and versions."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from edgepp.cluster.state_files import config_dir
from edgepp.http_api.endpoint import json_response
from edgepp.http_api.model_service import ModelService
from edgepp.http_api.openai_api.errors import FORM
from edgepp.http_api.operation import Operation
from edgepp.plan.bench_history import as_json, read_entries


def routes(_service: ModelService) -> list[BaseRoute]:
    """The route of the history."""

    async def history(_request: Request) -> Response:
        return json_response(await asyncio.to_thread(lambda: as_json(read_entries(config_dir()))))

    return [Operation("GET", "/bench/history", history, FORM, summary="Rates that `edgepp bench` measured over time.")]
