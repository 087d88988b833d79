"""One request's trouble as an error of its own, whatever raised it.

Libraries written in Rust end a call with an exception that is no ``Exception``; so a thread that answers somebody
catches every ``BaseException``, and none but the main thread is sent a ``KeyboardInterrupt``.
"""

from __future__ import annotations

import logging

from edgepp.error_boundary import explained
from edgepp.errors import EdgeppError

log = logging.getLogger("edgepp.engine")


def failure(error: BaseException, what: str) -> EdgeppError:
    """``error`` as it is if it is ours; else that ``what``, such as "the answer", failed with it. Logged then."""
    if isinstance(error, EdgeppError):
        return error
    log.error("%s failed", what, exc_info=error)
    found = explained(error)
    return EdgeppError(f"{what} failed: {found}", found.hint)


def request_failure(error: BaseException, request: int, doing: str) -> EdgeppError:
    """``error`` with the number of the request that it ends, and what it was ``doing`` where that is not said."""
    found = failure(error, f"request {request}, {doing},")
    if found is error:
        found.args = (f"request {request}: {found}",)
    return found
