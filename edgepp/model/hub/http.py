"""One HTTP answer of a model hub: behind a few redirects, at more than a trickle, and explained where it fails.

Requests go through huggingface_hub's session, so its proxies, certificates and offline switch hold here too. No body is
read but by ``pieces`` and ``bounded``, so a server that never ends costs what its reader allows.
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
"""A connection that brings fewer bytes in that time counts as broken."""

_TIMEOUT = httpx2.Timeout(20.0, connect=10.0)
_HEADERS_S = 60.0  # a server may send them a byte within every timeout
_CHUNK_BYTES = 256 << 10
_REDIRECTS = 5
_ERROR_BYTES = 64 << 10
_BUSY = {408, 429, 500, 502, 503, 504}


class HubUnreachable(ModelError):  # noqa: N818 - like StageLost: what happened, not whose fault
    """No answer from the hub: no network, offline by choice, or it is down."""


@contextmanager
def answer(url: str, headers: Mapping[str, str]) -> Iterator[httpx2.Response]:
    """The answer to a GET; no body is read but that of an error, and little of that.

    Raises:
        ModelError: it redirects in circles.
        HubUnreachable: its headers do not come.
        HfHubHTTPError, HTTPError: as the libraries see it, for ``explained`` to explain.
    """
    client = get_session()
    request = client.build_request("GET", url, headers={"Accept-Encoding": "identity", **headers}, timeout=_TIMEOUT)
    for _ in range(_REDIRECTS + 1):
        response = _headers_of(client, request)
        try:
            if response.next_request is None:
                if response.status_code >= 400:
                    _raise_for(response)
                yield response
                return
            request = response.next_request
        finally:
            response.close()
    raise ModelError(f"{httpx2.URL(url).host} redirects in circles", CHECK_ENDPOINT)


def _headers_of(client: httpx2.Client, request: httpx2.Request) -> httpx2.Response:
    """The answer up to its body, which is not read."""
    future: Future[httpx2.Response] = Future()

    def send() -> None:
        try:
            future.set_result(client.send(request, stream=True, follow_redirects=False))
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits
            future.set_exception(error)

    threading.Thread(target=send, name="hub-headers", daemon=True).start()
    try:
        return future.result(_HEADERS_S)
    except TimeoutError as error:
        if future.done():
            raise
        future.add_done_callback(_close)
        raise HubUnreachable(f"{request.url.host} does not finish its answer's headers", TRY_AGAIN) from error


def _close(late: Future[httpx2.Response]) -> None:
    if late.exception() is None:
        late.result().close()


def _raise_for(response: httpx2.Response) -> None:
    body = bytearray()
    for data in pieces(response):
        body += data
        if len(body) > _ERROR_BYTES:
            break
    headers = {key: value for key, value in response.headers.items() if key.startswith("x-")}
    hf_raise_for_status(
        httpx2.Response(response.status_code, headers=headers, content=bytes(body), request=response.request)
    )


def bounded(response: httpx2.Response, most: int) -> bytes:
    """The whole body of at most ``most`` bytes.

    Raises:
        ValueError: it is longer, or encoded.
    """
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise ValueError("it encodes what should be plain")
    body = bytearray()
    for data in pieces(response):
        body += data
        if len(body) > most:
            raise ValueError(f"its listing has more than {most >> 20} MiB")
    return bytes(body)


def pieces(response: httpx2.Response) -> Iterator[bytes]:
    """The body as it comes, in pieces of about ``_CHUNK_BYTES``.

    Raises:
        HubUnreachable: it comes so slowly that it would hardly end.
    """
    waiting = bytearray()
    since, arrived = time.monotonic(), 0
    for data in response.iter_raw():
        waiting += data
        arrived += len(data)
        if time.monotonic() - since > STALL_S:
            if arrived < STALL_BYTES:
                raise HubUnreachable(f"{response.url.host} sends next to nothing", TRY_AGAIN)
            since, arrived = time.monotonic(), 0
        if len(waiting) >= _CHUNK_BYTES:
            yield bytes(waiting)
            waiting.clear()
    if waiting:
        yield bytes(waiting)


@contextmanager
def explained(name: str, endpoint: str) -> Iterator[None]:
    """Turn what huggingface_hub and its HTTP library raise about the repository ``name`` into a sentence and a hint."""
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
        kind = HubUnreachable if status in _BUSY else ModelError
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
