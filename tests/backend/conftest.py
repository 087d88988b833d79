"""What several tests of the backends share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from edgepp.backend.onnx import kv_arena, kv_cache


@pytest.fixture(scope="module")
def small_lanes() -> Iterator[None]:
    """Few and short lanes of the ONNX backend, so that sequences outgrow them and move one at a time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kv_cache, "FIRST_POSITIONS", 16)
        patch.setattr(kv_cache, "_MOVED_BYTES", 1)
        patch.setattr(kv_arena, "LANES", 4)
        yield
