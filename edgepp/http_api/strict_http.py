"""HTTP/1.1 as h11 reads it, without requests whose end is ambiguous (RFC 9112, 6.3).

A proxy in front could read another length, and take the rest of the body for the next request, or the reverse.
"""

from __future__ import annotations

from typing import Any

import h11


class StrictHttp(h11.Connection):
    """h11's state of a connection; refuses requests whose end is ambiguous."""

    fault: str = ""
    """Reason why the newest request was refused; empty if h11 refused the request."""

    def next_event(self) -> Any:
        """The next event.

        Raises:
            h11.RemoteProtocolError: the client does not speak HTTP, or the end of its request is ambiguous.
        """
        event = super().next_event()
        if isinstance(event, h11.Request):
            self.fault = _fault(event)
            if self.fault:
                raise h11.RemoteProtocolError(self.fault)
        return event


def _fault(request: h11.Request) -> str:
    names = {name for name, _ in request.headers}
    if not request.http_version.startswith(b"1."):
        return "this server speaks HTTP version 1 alone"
    if b"transfer-encoding" not in names:
        return ""
    if b"content-length" in names:
        return "the request has Content-Length and Transfer-Encoding, so that its end is ambiguous"
    return "" if request.http_version == b"1.1" else "Transfer-Encoding needs HTTP/1.1"
