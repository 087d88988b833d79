"""Checks of text in a header: keys, addresses, routes, names. Sender and receiver use the same checks."""

from __future__ import annotations

import ipaddress
import re

from edgepp.printable import one_line, printable

MAX_ADDRESSES = 16
"""Highest number of addresses in one field."""
_KEY = re.compile(r"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")
_Z85 = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
_DIGIT = {character: value for value, character in enumerate(_Z85)}
_ROUTE = re.compile(r"(?!00)(?:[0-9a-f]{2}){1,255}")
_HOST_AND_PORT = re.compile(r"(?:\[([0-9A-Fa-f:.%\w]+)\]|([A-Za-z0-9._-]+|\*)):(\d{1,5})", re.ASCII)
_MAX_SENTENCE_BYTES = 1500


def is_key(text: str) -> bool:
    """Whether ``text`` is a well-formed public or secret key: 32 bytes in Z85, 40 characters."""
    return _KEY.fullmatch(text) is not None and all(_group(text[i : i + 5]) < 1 << 32 for i in range(0, 40, 5))


def _group(digits: str) -> int:
    value = 0
    for digit in digits:
        value = 85 * value + _DIGIT[digit]
    return value


def is_key_or_empty(text: str) -> bool:
    """Whether ``text`` is a key, or empty for a link that is not encrypted."""
    return not text or is_key(text)


def host_and_port(text: str) -> tuple[str, int] | None:
    """Host and port of ``HOST:PORT``, ``[IPV6]:PORT`` or ``*:PORT``; None for any other text."""
    match = _HOST_AND_PORT.fullmatch(text)
    if match is None or int(match[3]) > 65535:
        return None
    return match[1] or match[2], int(match[3])


def are_addresses(text: str) -> bool:
    """Whether ``text`` holds addresses to connect to, separated by commas; empty for none."""
    if not text:
        return True
    parts = [host_and_port(part) for part in text.split(",")]
    return len(parts) <= MAX_ADDRESSES and all(part and part[0] != "*" and part[1] for part in parts)


def are_hosts(text: str) -> bool:
    """Whether ``text`` holds IP addresses, separated by commas; empty for none."""
    if not text:
        return True
    hosts = text.split(",")
    return len(hosts) <= MAX_ADDRESSES and all(map(_is_ip, hosts))


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return re.fullmatch(r"[0-9a-fA-F:.]+(%[\w.-]{1,32})?", text, re.ASCII) is not None


def is_route(text: str) -> bool:
    """Whether ``text`` is a ZeroMQ routing id in hexadecimal: 1 to 255 bytes, of which the first is not 0."""
    return _ROUTE.fullmatch(text) is not None


def is_name(text: str) -> bool:
    """Whether ``text`` can be the name of a node or cluster: printable, on one line, not blank."""
    return text.isprintable() and bool(text.strip())


def is_label(text: str) -> bool:
    """Whether ``text`` is printable and on one line; it may be empty."""
    return text.isprintable() or ("\n" not in text and "\t" not in text and printable(text) == text)


def is_text(text: str) -> bool:
    """Whether ``text`` can be encoded as UTF-8: there is no lone surrogate."""
    return text.isascii() or not re.search("[\ud800-\udfff]", text)


def sentence(reason: object) -> str:
    """``reason`` as one printable line of at most 500 characters and 1500 bytes, to put into a ``Text`` field."""
    return one_line(str(reason), 500).encode()[:_MAX_SENTENCE_BYTES].decode(errors="ignore")
