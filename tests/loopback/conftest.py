"""Tests in one process with sockets, threads or child processes of the library."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from edgepp.model.text.client import TextClient

_clients: weakref.WeakSet[TextClient] = weakref.WeakSet()
_begin = TextClient.__init__


def _known(client: TextClient, *arguments: Any) -> None:
    _begin(client, *arguments)
    _clients.add(client)


TextClient.__init__ = _known  # type: ignore[method-assign]


@pytest.fixture(autouse=True)
def idle_text_processes_end() -> Iterator[None]:
    """End at once what would end by itself two seconds after its last call."""
    yield
    for client in list(_clients):
        if not client._keep:
            client.close()
