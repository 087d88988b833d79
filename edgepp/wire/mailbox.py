"""Waiting for sockets and for other threads at once.

A socket belongs to one thread. A ``Mailbox`` carries objects from other threads to that thread, which waits in a
``Poller`` for its sockets and mailboxes.
"""

from __future__ import annotations

import math
import os
import queue
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, TypeVar

import zmq

from edgepp.wire.transport import Link, Listener

T = TypeVar("T")

AWAKE_S = 0.05
"""How long a thread that has a core to itself waits without sleeping."""
_TAKEN_S = 0.0005
"""A turn of waiting that takes longer means that another program had the core meanwhile."""
_yield: Callable[[], None] = getattr(os, "sched_yield", lambda: time.sleep(0))


def wait_awake(come: Callable[[], bool], timeout_s: float = AWAKE_S) -> bool:
    """Ask ``come`` without sleeping until it says so, for ``timeout_s`` seconds at most; whether it did.

    A thread that slept while others computed takes up to a millisecond to reach full speed again. But where other
    programs want the core too, a thread that sleeps gets it sooner when something comes: then the wait ends early.
    """
    asked_s = time.perf_counter()
    until_s = asked_s + timeout_s
    while not come():
        _yield()
        now_s = time.perf_counter()
        if now_s >= until_s or now_s - asked_s > _TAKEN_S:
            return False
        asked_s = now_s
    return True


class Mailbox(Generic[T]):
    """A queue to a thread that sleeps in a poll. Any thread may ``put``; one thread polls ``fileno`` and drains."""

    def __init__(self) -> None:
        self._items: queue.SimpleQueue[T] = queue.SimpleQueue()
        self._read, self._write = socket.socketpair()
        self._read.setblocking(False)
        self._write.setblocking(False)
        self._num_taken = self._num_wakes = 0
        """Items taken, and wake-ups read, so far."""

    @property
    def has_items(self) -> bool:
        """Whether there are items. Makes no system call."""
        return not self._items.empty()

    def put(self, item: T) -> None:
        """Add an item and wake the reader. Safe from any thread."""
        self._items.put(item)
        try:
            self._write.send(b"\0")
        except BlockingIOError:
            return  # the pipe is full of wake-ups already

    def fileno(self) -> int:
        """The descriptor that becomes readable when there are items."""
        return self._read.fileno()

    def drain(self) -> list[T]:
        """Remove and return all items, oldest first. Makes no system call where nothing came."""
        if self._num_wakes >= self._num_taken and not self.has_items:
            return []
        with suppress(BlockingIOError):
            while wakes := len(self._read.recv(4096)):
                self._num_wakes += wakes
        items: list[T] = []
        with suppress(queue.Empty):
            while True:
                items.append(self._items.get_nowait())
        self._num_taken += len(items)
        return items

    def close(self) -> None:
        """Release the descriptors."""
        self._read.close()
        self._write.close()


class Poller(Generic[T]):
    """Waits for several sockets and mailboxes at once, in one thread."""

    def __init__(self, *readers: Listener | Link | Mailbox[T]) -> None:
        self._poller = zmq.Poller()
        self._readers: dict[object, Listener | Link | Mailbox[T]] = {}
        for reader in readers:
            self.add(reader)

    def add(self, reader: Listener | Link | Mailbox[T]) -> None:
        """Wait for ``reader`` too."""
        key = reader.fileno() if isinstance(reader, Mailbox) else reader.socket
        self._readers[key] = reader
        self._poller.register(key, zmq.POLLIN)

    def wake_on(self, sock: zmq.Socket[bytes]) -> None:
        """Let ``wait`` end when ``sock`` is readable; the caller reads it, and it is no reader."""
        self._poller.register(sock, zmq.POLLIN)

    def wait(self, timeout_s: float) -> list[Listener | Link | Mailbox[T]]:
        """Readers that have something to read, as soon as there is one; empty after ``timeout_s`` seconds without."""
        ready = self._poller.poll(max(0, math.ceil(timeout_s * 1000)))
        return [self._readers[key] for key, _ in ready if key in self._readers]
