"""Choice of the codec of a link: a given codec, or, for ``auto``, the lossless codec that takes least time.

The time that compression saves depends on the link and on the hidden states, so it is measured: every
``TRIAL_INTERVAL_FRAMES`` frames a frame is encoded and decoded with every lossless codec, and the fastest is used until
the next trial. The header names the codec of its frame, so the receiver makes no choice.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from edgepp.wire.codec import Array, Frame, decode, dtype_name, encode
from edgepp.wire.field_types import Codec, LinkCodec

MIN_COMPRESSED_BYTES = 16 << 10
"""Shorter frames are not compressed: latency dominates their time, and no codec lowers latency."""
TRIAL_INTERVAL_FRAMES = 64
"""Frames from one trial to the next."""
_LOSSLESS: tuple[Codec, ...] = ("none", "lz4", "zstd")


class CodecChoice:
    """The codec of one link, chosen by the sender."""

    def __init__(self, requested: LinkCodec, bytes_per_s: float) -> None:
        """``bytes_per_s`` is the measured rate of the link; with 0, for unknown, ``auto`` does not compress."""
        self._requested = requested
        self._bytes_per_s = bytes_per_s
        self._chosen: Codec = "none" if requested == "auto" else requested
        self._until_trial = 0

    def encode(self, array: Array) -> tuple[Codec, list[Frame]]:
        """Tensor frames of ``array`` (T, D), and the codec that they are encoded with."""
        if self._requested != "auto":
            return self._chosen, encode(array, self._chosen)
        if array.nbytes < MIN_COMPRESSED_BYTES or not self._bytes_per_s:
            return "none", encode(array, "none")
        if not self._until_trial:
            self._until_trial = TRIAL_INTERVAL_FRAMES
            self._chosen = min(self._trial(array))[1]
        self._until_trial -= 1
        return self._chosen, encode(array, self._chosen)

    def _trial(self, array: Array) -> Iterator[tuple[float, Codec]]:
        """Per lossless codec: seconds to encode, send and decode ``array``, and the codec."""
        for name in _LOSSLESS:
            started_s = time.perf_counter()
            frames = encode(array, name)
            decode(frames, len(array), array.shape[1], dtype_name(array.dtype), name)
            computing_s = time.perf_counter() - started_s
            yield computing_s + sum(len(frame) for frame in frames) / self._bytes_per_s, name
