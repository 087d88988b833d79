"""Client of a model hub: the files of a repository, and any byte range of a file.

``HF_ENDPOINT`` and ``HF_TOKEN`` come from the environment. A transfer that breaks off is resumed at the last byte.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx2
from huggingface_hub import get_token, hf_hub_url

from edgepp.errors import ModelError
from edgepp.model.bounded_files import parse_object
from edgepp.model.catalogue.source import is_commit
from edgepp.model.hub.http_client import (
    CHECK_ENDPOINT,
    STALL_BYTES,
    TRY_AGAIN,
    HubUnreachable,
    explain_errors,
    iter_body,
    open_response,
    read_body,
)
from edgepp.model.weights.weight_files import is_plain

_MAX_ATTEMPTS = 5
_RETRY_BASE_S = 1.0
_OTHER_REPOSITORY_HINT = "take the model from another repository"
_MAX_LISTING_BYTES = 8 << 20
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})")
_LENGTH = re.compile(r"[0-9]{1,18}")


@dataclass(frozen=True)
class Listing:
    """The files in the root of a repository at one commit, with their sizes in bytes; 0 is an unknown size."""

    commit: str
    files: Mapping[str, int]


@dataclass(frozen=True)
class FileChunk:
    """Bytes from ``offset`` of a file of ``size_bytes``; ``ranged`` tells whether the server supports byte ranges."""

    offset: int
    data: bytes
    size_bytes: int
    ranged: bool


def _files(siblings: Iterable[Any]) -> Iterator[tuple[str, int]]:
    """Names and sizes of the listed files with plain names.

    Raises:
        ValueError: an entry is not a file.
    """
    for entry in siblings:
        name, size_bytes = (entry.get("rfilename"), entry.get("size")) if isinstance(entry, dict) else (None, None)
        size_bytes = 0 if size_bytes is None else size_bytes
        if not isinstance(name, str) or type(size_bytes) is not int or size_bytes < 0:
            raise ValueError("it lists entries that are not files")
        if is_plain(name):
            yield name, size_bytes


class HubClient:
    """One repository on the hub."""

    def __init__(self, repository: str) -> None:
        self.repository = repository
        self.endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
        token = get_token()  # HF_TOKEN or that of `hf auth login`; dropped by httpx2 when a redirect leaves the hub
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._closed = threading.Event()

    def close(self) -> None:
        """End every stream when its next bytes arrive, without new attempts."""
        self._closed.set()

    def listing(self, revision: str) -> Listing:
        """The files of the repository at ``revision``, except those without plain names.

        Raises:
            ModelError: there is no such repository or revision, or it may not be read, or the answer is not a listing.
            HubUnreachable: the hub does not answer.
        """
        url = f"{self.endpoint}/api/models/{self.repository}/revision/{quote(revision, safe='')}?blobs=true"
        with explain_errors(self.repository, self.endpoint), open_response(url, self._headers) as response:
            answer = parse_object(read_body(response, _MAX_LISTING_BYTES))
            commit, siblings = answer.get("sha"), answer.get("siblings")
            if not isinstance(commit, str) or not is_commit(commit):
                raise ModelError(f"{self.endpoint} names no commit for {self.repository}", CHECK_ENDPOINT)
            if not isinstance(siblings, list):
                raise ValueError("it lists no files")
            return Listing(commit, dict(_files(siblings)))

    def read(self, commit: str, name: str, max_bytes: int, listed_bytes: int = 0) -> bytes:
        """The contents of a small file; ``listed_bytes`` is its size in the listing, 0 if unknown.

        Raises:
            ModelError: the file is larger than ``max_bytes``, or of another size than listed.
            HubUnreachable: the hub stopped answering.
        """
        body = bytearray()
        size_bytes = 0
        for chunk in self.stream(commit, name):
            self.check_size(name, chunk.size_bytes, listed_bytes)
            if chunk.size_bytes > max_bytes:
                raise ModelError(
                    f"{name} of {self.repository} has {chunk.size_bytes} bytes, which such a file cannot need",
                    _OTHER_REPOSITORY_HINT,
                )
            size_bytes = chunk.size_bytes
            body[chunk.offset :] = chunk.data
        if len(body) != size_bytes:
            raise HubUnreachable(f"{self.endpoint} sends only a part of {name}", TRY_AGAIN)
        return bytes(body)

    def check_size(self, name: str, size_bytes: int, listed_bytes: int) -> None:
        """Check the announced size of a file by its size in the listing, 0 if unknown.

        Raises:
            ModelError: the sizes differ.
        """
        if listed_bytes and size_bytes != listed_bytes:
            raise ModelError(
                f"{self.endpoint} lists {listed_bytes} bytes of {name} in {self.repository}"
                f" and sends a file of {size_bytes}",
                TRY_AGAIN,
            )

    def stream(self, commit: str, name: str, start: int = 0, stop: int | None = None) -> Generator[FileChunk]:
        """Chunks of bytes ``[start, stop)`` of a file; a server without byte ranges sends the whole file, from 0.

        The first chunk is empty and tells the size. A transfer that breaks off is resumed.

        Raises:
            ModelError: there is no such file, or it may not be read, or the server sends more bytes than announced.
            HubUnreachable: the hub stopped answering, and several new attempts failed as well.
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
                    end = chunk.size_bytes if stop is None else min(stop, chunk.size_bytes)
                    if self._closed.is_set():
                        return
            except HubUnreachable as error:
                broken = error
            failures = 0 if furthest - before >= STALL_BYTES else failures + 1
            if failures >= _MAX_ATTEMPTS and (end is None or position < end):
                raise broken or HubUnreachable(f"{self.endpoint} sends only a part of {name}", TRY_AGAIN)
            if broken is not None:
                self._closed.wait(_RETRY_BASE_S * 2**failures)

    def _request(self, commit: str, name: str, start: int, stop: int | None) -> Iterator[FileChunk]:
        url = hf_hub_url(self.repository, name, revision=commit, endpoint=self.endpoint)
        range_header = (
            {"Range": f"bytes={start}-{'' if stop is None else stop - 1}"} if start or stop is not None else {}
        )
        with (
            explain_errors(self.repository, self.endpoint),
            open_response(url, {**self._headers, **range_header}) as response,
        ):
            offset, end, size_bytes = self._body_range(response, start)
            ranged = response.status_code == 206
            yield FileChunk(offset, b"", size_bytes, ranged)  # gives the size, also of an empty file
            for data in iter_body(response):
                if offset + len(data) > end:
                    raise ModelError(
                        f"{response.url.host} sends more bytes of {name} than it announced", CHECK_ENDPOINT
                    )
                yield FileChunk(offset, data, size_bytes, ranged)
                offset += len(data)

    def _body_range(self, response: httpx2.Response, start: int) -> tuple[int, int, int]:
        """The range of the file that the body holds, as (start, stop), and the size of the file."""
        plain = response.headers.get("Content-Encoding", "identity") == "identity"
        if plain and response.status_code == 206:
            match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
            if match is not None and int(match[1]) == start <= int(match[2]) < int(match[3]):
                return start, int(match[2]) + 1, int(match[3])
        length = response.headers.get("Content-Length", "")
        if plain and response.status_code == 200 and _LENGTH.fullmatch(length):
            return 0, int(length), int(length)
        raise ModelError(
            f"{response.url.host} answered a request for a byte range of {self.repository} with another range",
            CHECK_ENDPOINT,
        )
