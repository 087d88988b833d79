"""The shelves of unit and backend tests refuse addresses and processes, and allow a socket pair."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable

import pytest
import zmq

from tests.shelf_watch import MisplacedError, watch


def _bind() -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))


def _bind_zmq() -> None:
    with zmq.Context() as context, context.socket(zmq.PULL) as one:
        one.bind("tcp://127.0.0.1:*")


@pytest.mark.parametrize(
    "act",
    [
        _bind,
        lambda: socket.create_connection(("127.0.0.1", 9)),
        lambda: subprocess.Popen([sys.executable, "--version"]),
        _bind_zmq,
    ],
    ids=["bind", "connect", "process", "zmq"],
)
def test_what_belongs_to_another_shelf_is_refused(act: Callable[[], object]) -> None:
    with pytest.raises(MisplacedError, match="move the test to tests/loopback"):
        act()
    assert watch.refused
    watch.refused.clear()


def test_a_socket_pair_is_allowed() -> None:
    for end in socket.socketpair():
        end.close()
