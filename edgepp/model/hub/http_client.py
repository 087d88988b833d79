"""HTTP requests to a model hub, with limits on redirects, time and bytes, and errors that users understand.

Requests go through huggingface_hub's session, so its proxies, certificates and offline switch apply. Bodies are read
only by ``iter_body`` and ``read_body``, so a server that sends without end costs no more than their limits.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager

import httpx2
from huggingface_hub import get_session, hf_raise_for_status
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from edgepp.errors import ModelError
from edgepp.printable import one_line

TRY_AGAIN = "try again in a while"
CHECK_ENDPOINT = "check HF_ENDPOINT"
STALL_S, STALL_BYTES = 30.0, 16 << 10
"""A connection that brings fewer than ``STALL_BYTES`` in ``STALL_S`` seconds counts as broken."""

_TIMEOUT = httpx2.Timeout(20.0, connect=10.0)  # seconds for each read or write, and to connect
_HEADERS_TIMEOUT_S = 60.0  # in all: a server may send one byte within every timeout
_CHUNK_BYTES = 256 << 10
_MAX_REDIRECTS = 5
_MAX_ERROR_BYTES = 64 << 10
_BUSY_STATUS = {408, 429, 500, 502, 503, 504}


class HubUnreachable(ModelError):  # noqa: N818 - like StageLost: what happened, not whose fault
    """The hub does not answer: no network, offline mode, or the hub is down."""


@contextmanager
def open_response(url: str, headers: Mapping[str, str]) -> Iterator[httpx2.Response]:
    """The response to a GET, with its body unread.

    Raises:
        ModelError: there are too many redirects.
        HubUnreachable: the headers do not arrive in time.
        HfHubHTTPError, HTTPError: from the libraries; ``explain_errors`` turns them into a ModelError.
    """
    client = get_session()
    request = client.build_request("GET", url, headers={"Accept-Encoding": "identity", **headers}, timeout=_TIMEOUT)
    for _ in range(_MAX_REDIRECTS + 1):
        response = _send(client, request)
        try:
            if response.next_request is None:
                if response.status_code >= 400:
                    _raise_for_status(response)
                yield response
                return
            request = response.next_request
        finally:
            response.close()
    raise ModelError(f"{httpx2.URL(url).host} redirects in circles", CHECK_ENDPOINT)


def _send(client: httpx2.Client, request: httpx2.Request) -> httpx2.Response:
    """The response with its body unread; waits at most ``_HEADERS_TIMEOUT_S`` for the headers."""
    future: Future[httpx2.Response] = Future()

    def send_request() -> None:
        try:
            future.set_result(client.send(request, stream=True, follow_redirects=False))
        except BaseException as error:  # noqa: BLE001 - raised again in the waiting thread
            future.set_exception(error)

    threading.Thread(target=send_request, name="hub-headers", daemon=True).start()
    try:
        return future.result(_HEADERS_TIMEOUT_S)
    except TimeoutError as error:
        if future.done():
            raise
        future.add_done_callback(_close)
        raise HubUnreachable(f"{request.url.host} does not finish the headers of its answer", TRY_AGAIN) from error


def _close(late: Future[httpx2.Response]) -> None:
    if late.exception() is None:
        late.result().close()


def _raise_for_status(response: httpx2.Response) -> None:
    body = bytearray()
    for data in iter_body(response):
        body += data
        if len(body) > _MAX_ERROR_BYTES:
            break
    headers = {key: value for key, value in response.headers.items() if key.startswith("x-")}
    hf_raise_for_status(
        httpx2.Response(response.status_code, headers=headers, content=bytes(body), request=response.request)
    )


def read_body(response: httpx2.Response, max_bytes: int) -> bytes:
    """The whole body, of at most ``max_bytes`` bytes.

    Raises:
        ValueError: the body is longer, or compressed.
    """
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise ValueError("it compresses its answer")
    body = bytearray()
    for data in iter_body(response):
        body += data
        if len(body) > max_bytes:
            raise ValueError(f"its listing has more than {max_bytes >> 20} MiB")
    return bytes(body)


def iter_body(response: httpx2.Response) -> Iterator[bytes]:
    """The body as it arrives, in pieces of at least ``_CHUNK_BYTES`` bytes, except the last.

    Raises:
        HubUnreachable: the body arrives too slowly.
    """
    pending = bytearray()
    window_start, arrived_bytes = time.monotonic(), 0
    for data in response.iter_raw():
        pending += data
        arrived_bytes += len(data)
        if time.monotonic() - window_start > STALL_S:
            if arrived_bytes < STALL_BYTES:
                raise HubUnreachable(f"{response.url.host} sends next to nothing", TRY_AGAIN)
            window_start, arrived_bytes = time.monotonic(), 0
        if len(pending) >= _CHUNK_BYTES:
            yield bytes(pending)
            pending.clear()
    if pending:
        yield bytes(pending)


@contextmanager
def explain_errors(name: str, endpoint: str) -> Iterator[None]:
    """Turn errors of huggingface_hub and its HTTP library about repository ``name`` into a ModelError with a hint.

    Raises:
        ModelError: the hub refuses the request, or ``endpoint`` does not answer like a hub.
        HubUnreachable: offline mode is on, or the hub is busy or cannot be reached.
    """
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise HubUnreachable("HF_HUB_OFFLINE forbids asking the hub", "unset HF_HUB_OFFLINE") from error
    except GatedRepoError as error:
        raise ModelError(
            f"{name} is gated: its owner asks you to accept terms first",
            f"accept them at {endpoint}/{name}, then set HF_TOKEN or run `hf auth login`",
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"the hub has no repository {name} that you may read",
            "check the name; for a private one set HF_TOKEN or run `hf auth login`",
        ) from error
    except RevisionNotFoundError as error:
        raise ModelError(f"{name} has no such revision", "check what follows the @ in the name") from error
    except EntryNotFoundError as error:
        raise ModelError(f"{name} lacks a file that it lists", TRY_AGAIN) from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        kind = HubUnreachable if status in _BUSY_STATUS else ModelError
        raise kind(f"{endpoint} answered {status} for {name}", TRY_AGAIN) from error
    except (httpx2.TransportError, ConnectionError) as error:
        raise HubUnreachable(
            f"{endpoint} cannot be reached: {one_line(str(error), 200) or type(error).__name__}",
            "check the network and HF_ENDPOINT; smollm2-135m needs no hub",
        ) from error
    except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as error:
        raise ModelError(
            f"{endpoint} does not answer like a model hub: {one_line(str(error), 200)}", CHECK_ENDPOINT
        ) from error
