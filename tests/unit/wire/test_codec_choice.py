"""The codec of a link, chosen by the time that compression saves there."""

from __future__ import annotations

import numpy as np
import pytest

from edgepp.wire.codec import decode
from edgepp.wire.codec_choice import MIN_COMPRESSED_BYTES, TRIAL_INTERVAL_FRAMES, CodecChoice
from edgepp.wire.field_types import LinkCodec

ZEROS = np.zeros((64, 512), np.float32)
NOISE = np.random.default_rng(0).integers(0, 1 << 32, (64, 512), np.uint32).view(np.float32)


@pytest.mark.parametrize("wanted", ["none", "lz4", "zstd", "int8"])
def test_a_named_codec_is_kept_to(wanted: LinkCodec) -> None:
    choice = CodecChoice(wanted, bytes_per_s=1e4)
    assert choice.encode(ZEROS)[0] == wanted
    assert choice.encode(ZEROS[:1])[0] == wanted


def test_a_slow_link_compresses_what_can_be_compressed() -> None:
    choice = CodecChoice("auto", bytes_per_s=1e4)
    name, frames = choice.encode(ZEROS)
    assert name in ("lz4", "zstd")
    assert sum(len(frame) for frame in frames) < ZEROS.nbytes / 50
    assert (decode(frames, 64, 512, "float32", name) == ZEROS).all()


def test_fast_links_noise_short_frames_and_links_of_unknown_rate_are_not_compressed() -> None:
    assert CodecChoice("auto", bytes_per_s=1e14).encode(ZEROS)[0] == "none"
    assert CodecChoice("auto", bytes_per_s=1e4).encode(NOISE)[0] == "none"
    assert CodecChoice("auto", bytes_per_s=1e4).encode(ZEROS[: MIN_COMPRESSED_BYTES // 2048 - 1])[0] == "none"
    assert CodecChoice("auto", bytes_per_s=0).encode(ZEROS)[0] == "none"


def test_a_trial_now_and_then_notices_that_frames_have_changed() -> None:
    choice = CodecChoice("auto", bytes_per_s=1e4)
    assert choice.encode(NOISE)[0] == "none"
    names = [choice.encode(ZEROS)[0] for _ in range(TRIAL_INTERVAL_FRAMES)]
    assert names[0] == "none"
    assert names[-1] != "none"
    assert choice.encode(ZEROS)[0] == names[-1]
