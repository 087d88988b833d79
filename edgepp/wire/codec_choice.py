"""Which codec a link's frames are sent with: the one named for it, or, by ``auto``, the lossless one that saves time.

What compressing saves depends on the link and on what the hidden states are like, so both are measured while it runs:
now and then a frame is encoded with every codec, and until the next trial frames go the way that was fastest. A frame
says its codec, so the receiver need not know.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from edgepp.wire.codec import Array, Frame, decode, dtype_name, encode
from edgepp.wire.field_types import Codec, LinkCodec

LEAST_BYTES = 16 << 10
"""A shorter frame is a matter of latency, which no codec lowers."""
TRIAL_EVERY = 64
"""Frames from one trial to the next."""
_LOSSLESS: tuple[Codec, ...] = ("none", "lz4", "zstd")


class CodecChoice:
    """The codec of one link, decided by whoever sends on it."""

    def __init__(self, wanted: LinkCodec, bytes_per_s: float) -> None:
        """``bytes_per_s`` is the link's measured rate; 0, where it is unknown, compresses nothing."""
        self._wanted = wanted
        self._bytes_per_s = bytes_per_s
        self._chosen: Codec = "none" if wanted == "auto" else wanted
        self._until_trial = 0

    @property
    def chosen(self) -> Codec:
        """What long frames are sent with at present."""
        return self._chosen

    def encode(self, array: Array) -> tuple[Codec, list[Frame]]:
        """The codec of this frame, and ``array`` (T, D) in it."""
        if self._wanted != "auto":
            return self._chosen, encode(array, self._chosen)
        if array.nbytes < LEAST_BYTES or not self._bytes_per_s:
            return "none", encode(array, "none")
        if not self._until_trial:
            self._until_trial = TRIAL_EVERY
            self._chosen = min(self._trial(array))[1]
        self._until_trial -= 1
        return self._chosen, encode(array, self._chosen)

    def _trial(self, array: Array) -> Iterator[tuple[float, Codec]]:
        """Seconds from array to array over the link, and the codec."""
        for name in _LOSSLESS:
            began_s = time.perf_counter()
            frames = encode(array, name)
            decode(frames, len(array), array.shape[1], dtype_name(array.dtype), name)
            computing_s = time.perf_counter() - began_s
            yield computing_s + sum(len(frame) for frame in frames) / self._bytes_per_s, name
