"""Messages of other ranks that have come and are not asked for yet."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from edgepp.wire.messages.ranks import RankMessage

MAX_WAITING_BYTES = 256 << 20
"""Bytes of one rank's messages that are kept while another rank's are awaited: a rank is a step ahead at most."""
_MESSAGE_BYTES = 256
"""What a message takes beside its header and frames."""

Received = tuple[RankMessage, list[memoryview]]
"""A message, and the frames after its header."""


class RankInbox:
    """The messages of each other rank, in the order in which they came."""

    def __init__(self, ranks: Iterable[int]) -> None:
        """``ranks`` are the other ranks."""
        self._received: dict[int, deque[tuple[Received, int]]] = {rank: deque() for rank in ranks}
        self._num_bytes = dict.fromkeys(self._received, 0)

    def put(self, rank: int, message: RankMessage, header_bytes: int, frames: list[memoryview]) -> bool:
        """Keep a message; False if the messages of ``rank`` take more than ``MAX_WAITING_BYTES`` with it."""
        num_bytes = _MESSAGE_BYTES + header_bytes + sum(map(len, frames))
        self._received[rank].append(((message, frames), num_bytes))
        self._num_bytes[rank] += num_bytes
        return self._num_bytes[rank] <= MAX_WAITING_BYTES

    def has(self, rank: int) -> bool:
        """Whether a message of ``rank`` waits."""
        return bool(self._received[rank])

    def take(self, rank: int) -> Received:
        """The oldest message of ``rank``, of which there must be one."""
        received, num_bytes = self._received[rank].popleft()
        self._num_bytes[rank] -= num_bytes
        return received
