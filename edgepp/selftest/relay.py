"""A relay of TCP connections to one address that keeps the bytes of both directions."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from edgepp.wire.address import Address

MAX_BYTES = 64 << 20
"""Bytes kept; the check sends far fewer."""


class Relay:
    """Listens on loopback and passes bytes on to ``target``. Use it in an ``async with`` statement."""

    def __init__(self, target: Address) -> None:
        self._target = target
        self._server: asyncio.Server | None = None
        self._writers: list[asyncio.StreamWriter] = []
        self.address = ""
        """``HOST:PORT`` at which the relay listens."""
        self.seen = bytearray()

    async def __aenter__(self) -> Relay:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.close()
        for writer in self._writers:
            writer.close()
        if self._server is not None:
            await self._server.wait_closed()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(self._target.host, self._target.port)
        self._writers += [writer, far_writer]
        await asyncio.gather(self._pass_on(reader, far_writer), self._pass_on(far_reader, writer))

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                if len(self.seen) < MAX_BYTES:
                    self.seen += data
                writer.write(data)
                await writer.drain()
        writer.close()
