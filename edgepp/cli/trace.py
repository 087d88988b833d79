"""`edgepp trace`: the times of a request on coordinator and stages."""

from __future__ import annotations

import click


@click.command()
@click.argument("request", required=False)
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    help="Write the trace for https://ui.perfetto.dev or chrome://tracing.  [default: REQUEST.trace.json]",
)
@click.option("--summary", is_flag=True, help="Write no file.")
@click.option("--peer", metavar="HOST:PORT", help="Address of `edgepp serve`, like 10.0.0.2:5700, if it is not found.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object: microseconds of each part.")
def trace(request: str | None, output: str | None, peer: str | None, *, summary: bool, as_json: bool) -> None:
    """Show where the time of an answer went, on all machines.

    REQUEST is the id of a recent request: `x-request-id` of its response, the id of the answer (chatcmpl-…), or last.
    Without REQUEST, recent requests are listed. `edgepp serve --trace-requests` sets how many are kept.

    The coordinator's machine sees all requests, other machines their own.

    \b
    Which requests there are, and where the time of the newest one went:
        edgepp trace
        edgepp trace last
    """
    from edgepp.ui import trace as ui

    if request is None:
        ui.list_requests(peer, as_json=as_json)
    else:
        ui.show_request(request, None if summary else output or "", peer, as_json=as_json)
