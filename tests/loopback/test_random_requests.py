"""Random requests made from /openapi.json: no input may break the server (EDGEPP_HTTP_CASES says how many)."""

from __future__ import annotations

import os

import schemathesis
from hypothesis import HealthCheck, Phase, settings

from edgepp.http_api.app import ROUTE_LISTS, make_app
from edgepp.http_api.cluster_api import feed
from edgepp.http_api.http_options import HttpOptions, Limits
from edgepp.http_api.operation import Operation
from tests.builders.scripted_service import AnyName, answer

NUM_CASES = int(os.environ.get("EDGEPP_HTTP_CASES", "150"))
"""Random requests of all operations together. From 1000 on, those at the borders of each field come besides."""
PHASES = (Phase.explicit, Phase.generate) if NUM_CASES >= 1000 else (Phase.generate,)


SERVICE = AnyName([answer("a", "b")])
feed.STREAM_S = 0.1  # a stream that ends by itself, for clients that read all of a response
ROUTES = [route for routes in ROUTE_LISTS for route in routes(SERVICE)]
OPERATIONS = [route for route in ROUTES if isinstance(route, Operation) and route.include_in_schema]
HOST = {"Host": "127.0.0.1"}
schema = schemathesis.openapi.from_asgi(
    "/openapi.json", make_app(SERVICE, HttpOptions(), Limits(), key_required=False), headers=HOST
)


@schema.parametrize()
@settings(
    max_examples=1 + NUM_CASES // len(OPERATIONS),
    phases=PHASES,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
def test_no_request_breaks_the_server(case: schemathesis.Case) -> None:
    SERVICE.played.clear()
    response = case.call(headers=HOST)
    assert response.status_code < 500 or response.status_code == 501, response.text
    if response.status_code >= 400 and case.method != "HEAD":
        assert "error" in response.json()
