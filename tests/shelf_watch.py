"""The shelves of tests that open no address and start no process; what needs either belongs to ``tests/loopback``."""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator
from typing import Any

import pytest
import zmq

_REFUSED = {
    "socket.bind", "socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto",
    "subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.system", "os.exec",
}  # fmt: skip
"""Audit events of CPython. A socket pair, as a ``Mailbox`` has it, has no address and is allowed."""
SHELVES = ("unit", "backend")


class MisplacedError(Exception):
    """A test did what only a test in ``tests/loopback`` may do."""


class _Watch:
    """Refuses while a test of these shelves runs, its fixtures included; others run in the same process."""

    def __init__(self) -> None:
        self.on = False
        self.refused: list[str] = []

    def refuse(self, what: str) -> None:
        if not self.on:
            return
        self.refused.append(what)
        raise MisplacedError(_sentence(what))


watch = _Watch()


def _sentence(what: str) -> str:
    return f"{what} in a test of tests/{' or tests/'.join(SHELVES)}; move the test to tests/loopback"


def _audited(event: str, arguments: tuple[Any, ...]) -> None:
    if event in _REFUSED:
        watch.refuse(event)


sys.addaudithook(_audited)  # cannot be removed again


def is_watched(item: pytest.Item) -> bool:
    """Whether a test is on one of the shelves."""
    return item.nodeid.startswith(tuple(f"tests/{shelf}/" for shelf in SHELVES))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Watch from the first fixture of a test to the last."""
    if not is_watched(item):
        return (yield)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("bind", "connect"):  # libzmq raises no audit event
            patch.setattr(zmq.Socket, name, lambda *_, name=name, **__: watch.refuse(f"zmq.Socket.{name}"))
        watch.on = True
        try:
            return (yield)
        finally:
            watch.on = False


@pytest.fixture(autouse=True)
def stays_on_its_shelf() -> Iterator[None]:
    """Fail also where the code under test survived the refusal."""
    watch.refused.clear()
    yield
    assert not watch.refused, _sentence(watch.refused[0])
