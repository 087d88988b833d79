"""The shelf of tests that open no address and start no process; what needs either belongs to ``tests/loopback``."""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

_REFUSED = {
    "socket.bind", "socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto",
    "subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.system", "os.exec",
}  # fmt: skip
"""Audit events of CPython. A socket pair, as a ``Mailbox`` has it, has no address and is allowed."""
_SHELF = Path(__file__).parent


class MisplacedError(Exception):
    """A unit test did what only a test in ``tests/loopback`` may do."""


class _Watch:
    """Refuses while a unit test runs, its fixtures included; other shelves run in the same process."""

    def __init__(self) -> None:
        self.on = False
        self.refused: list[str] = []

    def refuse(self, what: str) -> None:
        if not self.on:
            return
        self.refused.append(what)
        raise MisplacedError(f"{what} in tests/unit; move this test to tests/loopback")


watch = _Watch()


def _audited(event: str, arguments: tuple[Any, ...]) -> None:
    if event in _REFUSED:
        watch.refuse(event)


sys.addaudithook(_audited)  # cannot be removed again


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Watch from the first fixture of a test to the last."""
    if _SHELF not in item.path.parents:  # pytest calls this hook for all shelves
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
    assert not watch.refused, f"{watch.refused[0]} in tests/unit; move this test to tests/loopback"
