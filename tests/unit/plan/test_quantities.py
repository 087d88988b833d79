from __future__ import annotations

from collections.abc import Callable

import pytest

from edgepp.errors import UsageError
from edgepp.plan.quantities import parse_bytes, parse_bytes_per_s, parse_flops_per_s, parse_link, parse_seconds


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


@pytest.mark.parametrize(
    ("read", "texts"),
    [
        (parse_bytes, ("1001TB", "999999999999999999TB")),
        (parse_bytes_per_s, ("1B/s", "999kB/s", "9e99GB/s", "2PB/s")),
        (parse_flops_per_s, ("1FLOP/s", "1e5", "1e99", "9e9T")),
        (parse_link, ("1bit", "7kbit:1ms", "1e9Gbit", "1Gbit:9e99s", "1Gbit:2e5s")),
        (parse_seconds, ("1e99s", "86401s")),
    ],
)
def test_what_no_machine_has_is_one_sentence(read: Callable[[str], object], texts: tuple[str, ...]) -> None:
    for text in texts:
        with pytest.raises(UsageError) as caught:
            read(text)
        assert caught.value.hint.startswith("write i")
        assert len(str(caught.value)) < 80
