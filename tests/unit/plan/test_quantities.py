from __future__ import annotations

import pytest

from edgepp.errors import UsageError
from edgepp.plan.quantities import parse_bytes


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8GB", 8 * 10**9),
        ("500 MB", 500 * 10**6),
        ("1.5GiB", 3 * 2**29),
        ("8G", 8 * 10**9),
        ("8gi", 8 * 2**30),
        (" 64kB ", 64_000),
        ("2TB", 2 * 10**12),
        ("123456789b", 123456789),
        ("100B", 100),
        ("0.1GB", 10**8),
    ],
)
def test_sizes_as_people_write_them(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    "text", ["", "GB", "-8GB", "8XB", "8 G B", "0", "8", "0GB", "0.1B", "1e9", "1,5GB", "inf", "٣GB"]
)
def test_what_is_no_size_is_one_sentence(text: str) -> None:
    with pytest.raises(UsageError, match="is not a size") as caught:
        parse_bytes(text)
    assert "GB" in caught.value.hint
