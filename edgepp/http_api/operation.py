"""A route together with what /openapi.json says of it."""

from __future__ import annotations

from typing import Any

from starlette.routing import Route

from edgepp.http_api.endpoint import ErrorForm, Handler, endpoint


class Operation(Route):
    """One method of one path of an API, whose errors have the ``form`` of the API."""

    def __init__(
        self,
        method: str,
        path: str,
        handler: Handler,
        form: ErrorForm,
        *,
        summary: str,
        body: Any = None,
    ) -> None:
        """Make a route.

        Args:
            method: ``GET`` (with ``HEAD``), ``POST`` or another.
            path: The path, with parameters as Starlette writes them.
            handler: Makes the response to a request.
            form: How the API says that a request failed.
            summary: One line for /openapi.json.
            body: The type that decodes the JSON body, such as a msgspec struct; None if there is no body.
        """
        super().__init__(path, endpoint(handler, form), methods=[method], name=path)
        self.method = method
        self.summary = summary
        self.body = body
