"""One network a test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.netns.net import Lan, unavailable


@pytest.fixture
def lan() -> Iterator[Lan]:
    """An empty network; the test is skipped where none can be made."""
    if (reason := unavailable()) is not None:
        pytest.skip(reason)
    with Lan() as made:
        yield made
