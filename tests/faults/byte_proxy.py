"""A proxy for encrypted links: it passes on bytes between two addresses of loopback, and turns over chosen bits."""

from __future__ import annotations

import selectors
import socket
import threading

from tests.faults.proxy import flipped

FRONT, BACK = "127.0.0.2", "127.0.0.1"
_LONG_BYTES = 256
"""More than a heartbeat or a ping, less than a hidden state."""


class ByteProxy(threading.Thread):
    """Listens on the ports of ``FRONT`` and connects to the same ports of ``BACK``, until closed."""

    def __init__(self, ports: set[int]) -> None:
        super().__init__(name="byte-proxy", daemon=True)
        self._selector = selectors.DefaultSelector()
        self._closing = threading.Event()
        self.skips, self.flips = 0, 0
        """How many of the next long pieces of a stream to pass on, and how many then to change, each by one bit."""
        self.flipped = threading.Event()
        for port in ports:
            listener = socket.create_server((FRONT, port))
            self._selector.register(listener, selectors.EVENT_READ, None)
        self.start()

    def run(self) -> None:
        """Pass on bytes until closed."""
        while not self._closing.is_set():
            for key, _ in self._selector.select(0.05):
                here = key.fileobj
                assert isinstance(here, socket.socket)
                if key.data is None:
                    self._accept(here)
                elif here.fileno() >= 0:  # not closed with its other end in this turn
                    self._pass_on(here, key.data)
        for key in list(self._selector.get_map().values()):
            assert isinstance(key.fileobj, socket.socket)
            key.fileobj.close()
        self._selector.close()

    def close(self) -> None:
        """End the thread and all connections."""
        self._closing.set()
        self.join()

    def _accept(self, listener: socket.socket) -> None:
        client, _ = listener.accept()
        stage = socket.create_connection((BACK, listener.getsockname()[1]))
        self._selector.register(client, selectors.EVENT_READ, stage)
        self._selector.register(stage, selectors.EVENT_READ, client)

    def _pass_on(self, here: socket.socket, there: socket.socket) -> None:
        try:
            data = here.recv(1 << 16)
            if len(data) > _LONG_BYTES and self.skips:
                self.skips -= 1
            elif len(data) > _LONG_BYTES and self.flips:
                self.flips -= 1
                self.flipped.set()
                data = flipped(data, 4 * len(data))
            there.sendall(data)
        except OSError:
            data = b""
        if not data:
            for end in (here, there):
                self._selector.unregister(end)
                end.close()
