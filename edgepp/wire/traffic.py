"""Counts of what went over sockets."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Traffic:
    """Counts of one or several sockets of one thread; other threads may read them."""

    sent_bytes: int = 0
    """Bytes of messages that were handed to the socket."""
    received_bytes: int = 0
    reconnects: int = 0
    """Connections that were made again after one had ended."""
