"""HTTP to a model hub: what a repository holds, and any range of any file's bytes.

Requests go through huggingface_hub's session, so its proxies, certificates and offline switch hold here too. The
environment gives ``HF_ENDPOINT`` and ``HF_TOKEN``. A body that breaks off is taken up where it ended.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import httpx2
from huggingface_hub import HfApi, get_session, get_token, hf_hub_url, hf_raise_for_status
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from edgepp.errors import ModelError
from edgepp.model.source import is_commit
from edgepp.model.weights import is_plain

_TIMEOUT = httpx2.Timeout(20.0, connect=10.0)
_CHUNK_BYTES = 256 << 10
_ATTEMPTS = 5
_WAIT_S = 1.0
_TRY_AGAIN = "try again in a while"
_BUSY = {408, 429, 500, 502, 503, 504}
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)")


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
            ModelError: there is no such repository or revision, or it may not be read.
            HubUnreachable: the hub does not answer.
        """
        with self._explained():
            api = HfApi(endpoint=self.endpoint, library_name="edgepp")
            info = api.model_info(self.repository, revision=revision, files_metadata=True, timeout=20.0)
        if info.sha is None or not is_commit(info.sha):
            raise ModelError(f"{self.endpoint} names no commit for {self.repository}")
        names = {sibling.rfilename: sibling.size or 0 for sibling in info.siblings or ()}
        return Listing(info.sha, {name: size for name, size in names.items() if is_plain(name)})

    def read(self, commit: str, name: str, limit: int) -> bytes:
        """The whole of a small file.

        Raises:
            ModelError: it is larger than ``limit`` bytes.
        """
        body = bytearray()
        for chunk in self.stream(commit, name):
            if chunk.size > limit:
                raise ModelError(f"{name} of {self.repository} has {chunk.size} bytes, which it cannot need")
            body[chunk.offset :] = chunk.data
        return bytes(body)

    def stream(self, commit: str, name: str, start: int = 0, stop: int | None = None) -> Generator[Chunk]:
        """Bytes ``[start, stop)`` of a file; a server that knows no ranges sends all of it, from 0.

        Raises:
            ModelError: there is no such file, or it may not be read.
            HubUnreachable: the hub stopped answering, and several new attempts brought no byte.
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
            failures = 0 if furthest > before else failures + 1
            if failures >= _ATTEMPTS:
                raise broken or HubUnreachable(f"{self.endpoint} sends only a part of {name}", _TRY_AGAIN)
            if broken is not None:
                self._closed.wait(_WAIT_S * 2**failures)

    def _request(self, commit: str, name: str, start: int, stop: int | None) -> Iterator[Chunk]:
        url = hf_hub_url(self.repository, name, revision=commit, endpoint=self.endpoint)
        headers = {**self._headers, "Accept-Encoding": "identity"}
        if start or stop is not None:
            headers["Range"] = f"bytes={start}-{'' if stop is None else stop - 1}"
        request = get_session().stream("GET", url, headers=headers, follow_redirects=True, timeout=_TIMEOUT)
        with self._explained(), request as response:
            if response.status_code >= 400:
                response.read()
                hf_raise_for_status(response)
            offset, size = self._placed(response, start)
            ranged = response.status_code == 206
            yield Chunk(offset, b"", size, ranged)  # tells the size, also of an empty file
            for data in response.iter_bytes(_CHUNK_BYTES):
                yield Chunk(offset, data, size, ranged)
                offset += len(data)

    def _placed(self, response: httpx2.Response, start: int) -> tuple[int, int]:
        """Where the body begins in the file, and the file's size."""
        plain = response.headers.get("Content-Encoding", "identity") == "identity"
        if plain and response.status_code == 206:
            match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
            if match is not None and int(match[1]) == start:
                return start, int(match[2])
        length = response.headers.get("Content-Length", "")
        if plain and response.status_code == 200 and length.isdecimal():
            return 0, int(length)
        raise ModelError(f"{response.url.host} answered a request for bytes of {self.repository} with others")

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
