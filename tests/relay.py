"""A relay of TCP connections to one address, whose connections a test can break, as a link does that flaps."""

from __future__ import annotations

import selectors
import socket
import threading
from contextlib import suppress

from edgepp.wire.address import Address
from tests.waiting import PATIENCE_S


class Relay(threading.Thread):
    """Listens at ``address`` and passes on bytes to ``target``, until closed."""

    def __init__(self, target: Address) -> None:
        super().__init__(name="relay")
        self._target = (target.host, target.port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = Address(*self._listener.getsockname())
        self._other: dict[socket.socket, socket.socket] = {}
        """For each side of a connection the other one."""
        self._breaking, self._closing, self.broken = threading.Event(), threading.Event(), threading.Event()

    def run(self) -> None:
        with selectors.DefaultSelector() as selector, self._listener:
            selector.register(self._listener, selectors.EVENT_READ)
            while not self._closing.is_set():
                if self._breaking.is_set():
                    self._breaking.clear()
                    self._drop_all(selector)
                    self.broken.set()
                for key, _ in selector.select(0.01):
                    self._pass_on(selector, key.fileobj)
            self._drop_all(selector)

    def _pass_on(self, selector: selectors.BaseSelector, ready: object) -> None:
        if ready is self._listener:
            near, far = self._listener.accept()[0], socket.create_connection(self._target)
            self._other |= {near: far, far: near}
            selector.register(near, selectors.EVENT_READ)
            selector.register(far, selectors.EVENT_READ)
        elif isinstance(ready, socket.socket) and ready in self._other:
            data = b""
            with suppress(ConnectionError):  # one side has ended the connection
                data = ready.recv(1 << 16)
                self._other[ready].sendall(data)
            if not data:
                self._drop(selector, ready)

    def _drop(self, selector: selectors.BaseSelector, one: socket.socket) -> None:
        for side in (one, self._other[one]):
            selector.unregister(side)
            del self._other[side]
            side.close()

    def _drop_all(self, selector: selectors.BaseSelector) -> None:
        while self._other:
            self._drop(selector, next(iter(self._other)))

    def break_connections(self) -> None:
        """End all connections at once; new ones are accepted."""
        self.broken.clear()
        self._breaking.set()
        assert self.broken.wait(PATIENCE_S)

    def close(self) -> None:
        """End all connections, and listen no more."""
        self._closing.set()
        self.join()
