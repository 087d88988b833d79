"""HTTP to a model hub: what a repository holds, and any range of any file's bytes.

The environment gives ``HF_ENDPOINT`` and ``HF_TOKEN``. A body that breaks off is taken up where it ended.
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
from edgepp.model.hub.http import (
    CHECK_ENDPOINT,
    STALL_BYTES,
    TRY_AGAIN,
    HubUnreachable,
    answer,
    bounded,
    explained,
    pieces,
)
from edgepp.model.weights.weight_files import is_plain

_ATTEMPTS = 5
_WAIT_S = 1.0
_ELSEWHERE = "take the model from another repository"
_LISTING_BYTES = 8 << 20
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})")
_LENGTH = re.compile(r"[0-9]{1,18}")


@dataclass(frozen=True)
class Listing:
    """The files in the root of a repository at one commit, each with its bytes where the hub tells them."""

    commit: str
    files: Mapping[str, int]


@dataclass(frozen=True)
class FileChunk:
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


class HubClient:
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
        with explained(self.repository, self.endpoint), answer(url, self._headers) as response:
            facts = parse_object(bounded(response, _LISTING_BYTES))
            commit, siblings = facts.get("sha"), facts.get("siblings")
            if not isinstance(commit, str) or not is_commit(commit):
                raise ModelError(f"{self.endpoint} names no commit for {self.repository}", CHECK_ENDPOINT)
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
            raise HubUnreachable(f"{self.endpoint} sends only a part of {name}", TRY_AGAIN)
        return bytes(body)

    def check_size(self, name: str, size: int, expected: int) -> None:
        """Hold a file's announced size to the ``expected`` one; 0 is not known.

        Raises:
            ModelError: they differ.
        """
        if expected and size != expected:
            raise ModelError(
                f"{self.endpoint} lists {expected} bytes of {name} in {self.repository} and sends a file of {size}",
                TRY_AGAIN,
            )

    def stream(self, commit: str, name: str, start: int = 0, stop: int | None = None) -> Generator[FileChunk]:
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
            failures = 0 if furthest - before >= STALL_BYTES else failures + 1
            if failures >= _ATTEMPTS and (end is None or position < end):
                raise broken or HubUnreachable(f"{self.endpoint} sends only a part of {name}", TRY_AGAIN)
            if broken is not None:
                self._closed.wait(_WAIT_S * 2**failures)

    def _request(self, commit: str, name: str, start: int, stop: int | None) -> Iterator[FileChunk]:
        url = hf_hub_url(self.repository, name, revision=commit, endpoint=self.endpoint)
        asked = {"Range": f"bytes={start}-{'' if stop is None else stop - 1}"} if start or stop is not None else {}
        with explained(self.repository, self.endpoint), answer(url, {**self._headers, **asked}) as response:
            offset, end, size = self._placed(response, start)
            ranged = response.status_code == 206
            yield FileChunk(offset, b"", size, ranged)  # tells the size, also of an empty file
            for data in pieces(response):
                if offset + len(data) > end:
                    raise ModelError(
                        f"{response.url.host} sends more bytes of {name} than it announced", CHECK_ENDPOINT
                    )
                yield FileChunk(offset, data, size, ranged)
                offset += len(data)

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
            f"{response.url.host} answered a request for bytes of {self.repository} with others", CHECK_ENDPOINT
        )
