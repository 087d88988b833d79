"""A route together with its description in /openapi.json."""

from __future__ import annotations

from typing import Any

from starlette.routing import Route

from edgepp.http_api.endpoint import ErrorForm, Handler, administering, endpoint


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
        administers: bool = False,
    ) -> None:
        """Make a route.

        Args:
            method: ``GET`` (with ``HEAD``), ``POST`` or another.
            path: The path, with parameters as Starlette writes them.
            handler: Makes the response to a request.
            form: The error form of the API.
            summary: One line for /openapi.json.
            body: The type that decodes the JSON body, such as a msgspec struct; None if there is no body.
            administers: Whether the operation changes the cluster for everybody, which not every client may do.
        """
        allowed = administering(handler) if administers else handler
        super().__init__(path, endpoint(allowed, form), methods=[method], name=path)
        self.method = method
        self.summary = summary
        self.body = body
