"""The ASGI application: all APIs over one ``ModelService``, behind the checks of ``access``."""

from __future__ import annotations

from collections.abc import Callable

from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from edgepp.http_api import bench_history, health, load_model, metrics, web_page
from edgepp.http_api.access.authentication import Authentication
from edgepp.http_api.access.bodies import Bodies
from edgepp.http_api.access.content_types import ContentTypes
from edgepp.http_api.access.fair_use import FairUse
from edgepp.http_api.access.head_limits import HeadLimits
from edgepp.http_api.access.hosts import HostNames, Hosts
from edgepp.http_api.access.origins import OriginNames, Origins
from edgepp.http_api.access.paths import Paths
from edgepp.http_api.access.request_ids import RequestIds
from edgepp.http_api.access.unread_bodies import UnreadBodies
from edgepp.http_api.anthropic_api import messages
from edgepp.http_api.api_keys import KeyRing
from edgepp.http_api.cluster_api import routes as cluster
from edgepp.http_api.http_options import HttpOptions, Limits
from edgepp.http_api.model_service import ModelService
from edgepp.http_api.ollama_api import routes as ollama
from edgepp.http_api.openai_api import responses
from edgepp.http_api.openai_api import routes as chat
from edgepp.http_api.openapi import described
from edgepp.http_api.routing import Routing
from edgepp.http_api.running_requests import RunningRequests
from edgepp.http_api.traced_writes import TracedWrites
from edgepp.tracing.request_trace import TraceLog

RouteList = Callable[[ModelService], list[BaseRoute]]
ROUTE_LISTS: tuple[RouteList, ...] = (
    web_page.routes,
    chat.routes,
    responses.routes,
    messages.routes,
    ollama.routes,
    health.routes,
    metrics.routes,
    load_model.routes,
    cluster.routes,
    bench_history.routes,
)
"""The ``routes`` of the web page, and of every module of an API; a new module is added here."""


def make_app(
    service: ModelService,
    options: HttpOptions,
    limits: Limits,
    *,
    key_required: bool,
    running: RunningRequests | None = None,
    traces: TraceLog | None = None,
) -> ASGIApp:
    """All APIs over ``service``, for a server with ``options``; ``traces`` are those of the newest requests."""
    routes = [route for routes in ROUTE_LISTS for route in routes(service)]
    running = running or RunningRequests()
    app = _prepared(Routing(described(routes)), service)
    if traces is not None and traces.kept:
        app = TracedWrites(app, traces)
    return guarded(app, options, limits, running, key_required=key_required)


def _prepared(app: ASGIApp, service: ModelService) -> ASGIApp:
    """``app``, whose requests find the facts about the model ready, so that no request blocks the others."""

    async def prepared(scope: Scope, receive: Receive, send: Send) -> None:
        await service.prepare()
        await app(scope, receive, send)

    return prepared


def guarded(
    app: ASGIApp, options: HttpOptions, limits: Limits, running: RunningRequests, *, key_required: bool
) -> ASGIApp:
    """``app`` behind all checks, the first of which is the last line."""
    app = Bodies(app, limits)
    app = running.watched(app)
    app = FairUse(app, limits.num_requests_per_owner)
    app = ContentTypes(app)
    app = Authentication(app, KeyRing(), required=key_required, loopback_administers=not options.require_key)
    app = Origins(app, OriginNames(options.allow_origins))
    app = Hosts(app, HostNames(options.allow_hosts))
    app = HeadLimits(app, limits)
    app = Paths(app)
    app = UnreadBodies(app, limits)
    return RequestIds(app)
