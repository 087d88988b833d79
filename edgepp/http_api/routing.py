"""The choice of a route by path and method; paths of no route and wrong methods are refused in the API's own form."""

from __future__ import annotations

from collections.abc import Iterable

from starlette.responses import Response
from starlette.routing import BaseRoute, Match, Route
from starlette.types import Receive, Scope, Send

from edgepp.http_api.access.refusal import refuse
from edgepp.http_api.failures import RequestError
from edgepp.printable import one_line


class Routing:
    """Routes under their paths; a route below ``/v1/`` also without it, and any other also below it."""

    def __init__(self, routes: Iterable[BaseRoute]) -> None:
        self._literal: dict[str, list[BaseRoute]] = {}
        """The routes whose path has no parameters, by that path: most routes, of which a request looks at few."""
        self._patterns: list[BaseRoute] = []
        for route in routes:
            if isinstance(route, Route) and not route.param_convertors:
                self._literal.setdefault(route.path, []).append(route)
            else:
                self._patterns.append(route)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        allowed: set[str] = set()
        given = scope["path"]
        for path in (given, f"/v1{given}", given.removeprefix("/v1") or given):
            looked = {**scope, "path": path}
            for route in [*self._literal.get(path, []), *self._patterns]:
                match, found = route.matches(looked)
                if match == Match.FULL:
                    scope.update(path=path, **found)
                    return await route.handle(scope, receive, send)
                if match == Match.PARTIAL:
                    allowed |= set(getattr(route, "methods", None) or ())
        return await _refuse(allowed, scope, receive, send)


async def _refuse(allowed: set[str], scope: Scope, receive: Receive, send: Send) -> None:
    method, path = one_line(scope["method"], 40), one_line(scope["path"], 200)
    headers = {"Allow": ", ".join(sorted(allowed | {"OPTIONS"}))}
    if not allowed:
        error = RequestError("not_found", f"there is no {path} here", "see /openapi.json for what there is")
        await refuse(error, scope, receive, send)
    elif scope["method"] == "OPTIONS":
        await Response(status_code=204, headers=headers)(scope, receive, send)
    else:
        error = RequestError("method_not_allowed", f"{path} takes no {method}", f"use {', '.join(sorted(allowed))}")
        await refuse(error, scope, receive, send, headers)
