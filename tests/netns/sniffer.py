"""Writes every frame of this network namespace to a file, each after its length, until standard input ends.

Prints ``ready``, and at the end how many frames the kernel dropped.
"""

# ruff: noqa: T201

from __future__ import annotations

import select
import socket
import struct
import sys
from pathlib import Path

ETH_P_ALL = 0x0003
SOL_PACKET, PACKET_STATISTICS = 263, 6
SO_RCVBUFFORCE = 33


def main() -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)) as sock:
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
        sock.setblocking(False)
        print("ready", flush=True)
        with Path(sys.argv[1]).open("wb") as file:
            ending = False
            while not ending:
                ready, _, _ = select.select([sock, sys.stdin], [], [])
                ending = sys.stdin in ready
                try:
                    while frame := sock.recv(1 << 18):
                        file.write(len(frame).to_bytes(4, "big") + frame)
                except BlockingIOError:
                    continue
        _, dropped = struct.unpack("II", sock.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
    print(dropped, flush=True)


if __name__ == "__main__":
    main()
