"""HTTP to a model hub: what a repository holds, and any range of any file's bytes.

Requests go through huggingface_hub's session, so its proxies, certificates and offline switch hold here too. The
environment gives ``HF_ENDPOINT`` and ``HF_TOKEN``. A body that breaks off is taken up where it ended.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx2
from huggingface_hub import get_session, get_token, hf_hub_url, hf_raise_for_status
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from edgepp.errors import ModelError
from edgepp.model.files import parse_object
from edgepp.model.source import is_commit
from edgepp.model.weights import is_plain

_TIMEOUT = httpx2.Timeout(20.0, connect=10.0)
_CHUNK_BYTES = 256 << 10
_ATTEMPTS = 5
_WAIT_S = 1.0
_TRY_AGAIN = "try again in a while"
_ELSEWHERE = "take the model from another repository"
_BUSY = {408, 429, 500, 502, 503, 504}
_REDIRECTS = 5
_LISTING_BYTES = 8 << 20
_ERROR_BYTES = 64 << 10
_STALL_S, _STALL_BYTES = 30.0, 16 << 10  # a connection that brings less in that time counts as broken
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})")
_LENGTH = re.compile(r"[0-9]{1,18}")


class HubUnreachable(ModelError):  # noqa: N818 - like StageLost: what happened, not whose fault
    """No answer from the hub: no network, offline by choice, or it is down."""


@dataclass(frozen=True)
class Listing:
    """The files in the root of a repository at one commit, each with its bytes where the hub tells them."""

    commit: str
    files: Mapping[str, int]


@dataclass(frozen=True)
class Chunk:
    """Some bytes of a file of ``size`` bytes; ``ranged`` says that the server sends ranges on request."""

    offset: int
    data: bytes
    size: int
    ranged: bool


def _files(siblings: Iterable[Any]) -> Iterator[tuple[str, int]]:
    """Names and sizes of listed files that could be plain ones.

    Raises:
        ValueError: an entry is no file.
    """
    for each in siblings:
        name, size = (each.get("rfilename"), each.get("size")) if isinstance(each, dict) else (None, None)
        size = 0 if size is None else size
        if not isinstance(name, str) or type(size) is not int or size < 0:
            raise ValueError("it lists what is no file")
        if is_plain(name):
            yield name, size


class Hub:
    """One repository on the hub."""

    def __init__(self, repository: str) -> None:
        self.repository = repository
        self.endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
        token = get_token()  # HF_TOKEN, or what `hf auth login` kept; dropped when a redirect leaves the hub
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._closed = threading.Event()

    def close(self) -> None:
        """End every stream at its next bytes, and make no new attempts."""
        self._closed.set()

    def listing(self, revision: str) -> Listing:
        """What the repository holds at ``revision``, names that could not be plain files left out.

        Raises:
            ModelError: there is no such repository or revision, it may not be read, or the answer is no listing.
            HubUnreachable: the hub does not answer.
        """
        url = f"{self.endpoint}/api/models/{self.repository}/revision/{quote(revision, safe='')}?blobs=true"
        with self._explained(), self._answer(url, {}) as response:
            facts = parse_object(self._bounded(response, _LISTING_BYTES))
            commit, siblings = facts.get("sha"), facts.get("siblings")
            if not isinstance(commit, str) or not is_commit(commit):
                raise ModelError(f"{self.endpoint} names no commit for {self.repository}", "check HF_ENDPOINT")
            if not isinstance(siblings, list):
                raise ValueError("it lists no files")
            return Listing(commit, dict(_files(siblings)))

    def read(self, commit: str, name: str, limit: int, listed: int = 0) -> bytes:
        """The whole of a small file; ``listed`` is its size where the listing gave one.

        Raises:
            ModelError: it is larger than ``limit`` bytes, or of another size than listed.
        """
        body = bytearray()
        size = 0
        for chunk in self.stream(commit, name):
            self.check_size(name, chunk.size, listed)
            if chunk.size > limit:
                raise ModelError(
                    f"{name} of {self.repository} has {chunk.size} bytes, which it cannot need", _ELSEWHERE
                )
            size = chunk.size
            body[chunk.offset :] = chunk.data
        if len(body) != size:
            raise HubUnreachable(f"{self.endpoint} sends only a part of {name}", _TRY_AGAIN)
        return bytes(body)

    def check_size(self, name: str, size: int, expected: int) -> None:
        """Hold a file's announced size to the ``expected`` one; 0 is not known.

        Raises:
            ModelError: they differ.
        """
        if expected and size != expected:
            raise ModelError(
                f"{self.endpoint} lists {expected} bytes of {name} in {self.repository} and sends a file of {size}",
                _TRY_AGAIN,
            )

    def stream(self, commit: str, name: str, start: int = 0, stop: int | None = None) -> Generator[Chunk]:
        """Bytes ``[start, stop)`` of a file; a server that knows no ranges sends all of it, from 0.

        Raises:
            ModelError: there is no such file, it may not be read, or the server sends other bytes than it announced.
            HubUnreachable: the hub stopped answering, and several new attempts brought next to nothing.
        """
        position = furthest = start
        end = stop
        failures = 0
        while (end is None or position < end) and not self._closed.is_set():
            before = furthest
            broken: HubUnreachable | None = None
            try:
                for chunk in self._request(commit, name, position, stop):
                    yield chunk
                    position = chunk.offset + len(chunk.data)
                    furthest = max(furthest, position)
                    end = chunk.size if stop is None else min(stop, chunk.size)
                    if self._closed.is_set():
                        return
            except HubUnreachable as error:
                broken = error
            failures = 0 if furthest - before >= _STALL_BYTES else failures + 1
            if failures >= _ATTEMPTS and (end is None or position < end):
                raise broken or HubUnreachable(f"{self.endpoint} sends only a part of {name}", _TRY_AGAIN)
            if broken is not None:
                self._closed.wait(_WAIT_S * 2**failures)

    def _request(self, commit: str, name: str, start: int, stop: int | None) -> Iterator[Chunk]:
        url = hf_hub_url(self.repository, name, revision=commit, endpoint=self.endpoint)
        asked = {"Range": f"bytes={start}-{'' if stop is None else stop - 1}"} if start or stop is not None else {}
        with self._explained(), self._answer(url, asked) as response:
            offset, end, size = self._placed(response, start)
            ranged = response.status_code == 206
            yield Chunk(offset, b"", size, ranged)  # tells the size, also of an empty file
            for data in self._pieces(response):
                if offset + len(data) > end:
                    raise ModelError(
                        f"{response.url.host} sends more bytes of {name} than it announced", "check HF_ENDPOINT"
                    )
                yield Chunk(offset, data, size, ranged)
                offset += len(data)

    @contextmanager
    def _answer(self, url: str, headers: Mapping[str, str]) -> Iterator[httpx2.Response]:
        """The answer to a GET, behind a few redirects; no body is read but that of an error, and little of that."""
        client = get_session()
        wanted = {**self._headers, "Accept-Encoding": "identity", **headers}
        request = client.build_request("GET", url, headers=wanted, timeout=_TIMEOUT)
        for _ in range(_REDIRECTS + 1):
            response = client.send(request, stream=True, follow_redirects=False)
            try:
                if response.next_request is None:
                    if response.status_code >= 400:
                        self._raise_for(response)
                    yield response
                    return
                request = response.next_request
            finally:
                response.close()
        raise ModelError(f"{self.endpoint} redirects in circles", "check HF_ENDPOINT")

    def _raise_for(self, response: httpx2.Response) -> None:
        body = bytearray()
        for data in self._pieces(response):
            body += data
            if len(body) > _ERROR_BYTES:
                break
        headers = {key: value for key, value in response.headers.items() if key.startswith("x-")}
        hf_raise_for_status(
            httpx2.Response(response.status_code, headers=headers, content=bytes(body), request=response.request)
        )

    def _bounded(self, response: httpx2.Response, most: int) -> bytes:
        """The whole body of at most ``most`` bytes.

        Raises:
            ValueError: it is longer, or encoded.
        """
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise ValueError("it encodes what should be plain")
        body = bytearray()
        for data in self._pieces(response):
            body += data
            if len(body) > most:
                raise ValueError(f"its listing has more than {most >> 20} MiB")
        return bytes(body)

    def _pieces(self, response: httpx2.Response) -> Iterator[bytes]:
        """The body as it comes, in pieces of about ``_CHUNK_BYTES``.

        Raises:
            HubUnreachable: it comes so slowly that it would hardly end.
        """
        waiting = bytearray()
        since, arrived = time.monotonic(), 0
        for data in response.iter_raw():
            waiting += data
            arrived += len(data)
            if time.monotonic() - since > _STALL_S:
                if arrived < _STALL_BYTES:
                    raise HubUnreachable(f"{response.url.host} sends next to nothing", _TRY_AGAIN)
                since, arrived = time.monotonic(), 0
            if len(waiting) >= _CHUNK_BYTES:
                yield bytes(waiting)
                waiting.clear()
        if waiting:
            yield bytes(waiting)

    def _placed(self, response: httpx2.Response, start: int) -> tuple[int, int, int]:
        """Where in the file the body begins and ends, and the file's size."""
        plain = response.headers.get("Content-Encoding", "identity") == "identity"
        if plain and response.status_code == 206:
            match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
            if match is not None and int(match[1]) == start <= int(match[2]) < int(match[3]):
                return start, int(match[2]) + 1, int(match[3])
        length = response.headers.get("Content-Length", "")
        if plain and response.status_code == 200 and _LENGTH.fullmatch(length):
            return 0, int(length), int(length)
        raise ModelError(
            f"{response.url.host} answered a request for bytes of {self.repository} with others", "check HF_ENDPOINT"
        )

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn what huggingface_hub and its HTTP library raise into one sentence and what to do."""
        name = self.repository
        try:
            yield
        except OfflineModeIsEnabled as error:
            raise HubUnreachable("HF_HUB_OFFLINE forbids asking the hub", "unset HF_HUB_OFFLINE") from error
        except GatedRepoError as error:
            raise ModelError(
                f"{name} is gated: its owner asks you to accept terms first",
                f"accept them at {self.endpoint}/{name}, then set HF_TOKEN or run `hf auth login`",
            ) from error
        except RepositoryNotFoundError as error:
            raise ModelError(
                f"the hub has no repository {name} that you may read",
                "check the name; for a private one set HF_TOKEN or run `hf auth login`",
            ) from error
        except RevisionNotFoundError as error:
            raise ModelError(f"{name} has no such revision", "check what follows the @ in the name") from error
        except EntryNotFoundError as error:
            raise ModelError(f"{name} lacks a file that it lists", _TRY_AGAIN) from error
        except HfHubHTTPError as error:
            status = error.response.status_code
            kind = HubUnreachable if status in _BUSY else ModelError
            raise kind(f"{self.endpoint} answered {status} for {name}", _TRY_AGAIN) from error
        except (httpx2.TransportError, ConnectionError) as error:
            raise HubUnreachable(
                f"{self.endpoint} cannot be reached: {error or type(error).__name__}",
                "check the network and HF_ENDPOINT; smollm2-135m needs no hub",
            ) from error
        except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as error:
            raise ModelError(
                f"{self.endpoint} does not answer like a model hub: {error}", "check HF_ENDPOINT"
            ) from error
