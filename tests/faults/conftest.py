"""What the tests of faults share: questions, and the tokens that one process gives to them."""

from __future__ import annotations

import pytest

from tests.faults.questions import MODEL, Questions


@pytest.fixture(scope="session")
def questions() -> Questions:
    """All questions, put to real weights."""
    return Questions.put_to(MODEL)
