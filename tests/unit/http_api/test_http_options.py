"""Where the HTTP server listens, as people write it."""

from __future__ import annotations

import pytest

from edgepp.errors import UsageError
from edgepp.http_api.http_options import EVERYWHERE, LOOPBACK, HttpOptions


@pytest.mark.parametrize(
    ("http", "lan", "hosts", "port"),
    [
        ("", False, LOOPBACK, 11434),
        ("", True, EVERYWHERE, 11434),
        ("127.0.0.1", False, ("127.0.0.1",), 11434),
        ("127.0.0.1", True, EVERYWHERE, 11434),
        ("localhost", False, LOOPBACK, 11434),
        ("mac-mini.local", False, ("mac-mini.local",), 11434),
        ("::1", False, ("::1",), 11434),
        ("[::1]", False, ("::1",), 11434),
        ("*", False, EVERYWHERE, 11434),
        (":11500", False, LOOPBACK, 11500),
        (":0", False, LOOPBACK, 0),
        (":8080", True, EVERYWHERE, 8080),
        ("0", False, LOOPBACK, 0),
        ("8080", False, LOOPBACK, 8080),
        ("8080", True, EVERYWHERE, 8080),
        ("localhost:0", False, LOOPBACK, 0),
        ("127.0.0.1:8080", False, ("127.0.0.1",), 8080),
        ("192.168.1.20:8080", False, ("192.168.1.20",), 8080),
        ("*:8080", False, EVERYWHERE, 8080),
        ("127.0.0.1:8080", True, EVERYWHERE, 8080),
        ("[::1]:8080", False, ("::1",), 8080),
    ],
)
def test_an_address_as_people_write_it(http: str, lan: bool, hosts: tuple[str, ...], port: int) -> None:
    options = HttpOptions(http, lan)
    assert options.listen == (hosts, port)
    assert options.is_default == (port == 11434)
    assert options.on


def test_it_can_be_off() -> None:
    assert not HttpOptions("off").on
    with pytest.raises(UsageError, match="exclude each other"):
        HttpOptions("off", lan=True)


@pytest.mark.parametrize(
    "options",
    [
        {"http": "two words"},
        {"http": "localhost:"},
        {"http": ":"},
        {"http": ":x"},
        {"http": ":70000"},
        {"http": "[localhost]"},
        {"http": "70000"},
        {"http": "1" * 5000},
        {"http": "127.0.0.1:70000"},
        {"http": "http://localhost:80"},
        {"allow_origins": ("chat.example",)},
        {"allow_origins": ("https://chat.example/",)},
        {"allow_hosts": ("https://chat.example",)},
        {"allow_hosts": ("chat.example:80",)},
    ],
    ids=lambda options: str(options)[:60],
)
def test_what_cannot_be_understood_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(UsageError) as refused:
        HttpOptions(**options)  # type: ignore[arg-type]
    assert refused.value.hint
