"""Replacement of personal names in a report: hosts, users, nodes, addresses, ids and paths.

The same name gets the same replacement everywhere, such as ``node-2``, so that the report can still be read.
"""

from __future__ import annotations

import getpass
import ipaddress
import platform
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

_SHORTEST = 2
_MAC = re.compile(r"\b(?:[0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}\b")
_ADDRESS = re.compile(
    r"(?<![\w.:])(?:\d{1,3}(?:\.\d{1,3}){3}(?!\.?\w)|[0-9a-fA-F]{0,4}(?::[0-9a-fA-F]{0,4}){2,7}(?![\w:]))"
)
_PATH = re.compile(r"(?<![\w./:~-])(?:~|/[^\s/'\",;:)]+)(?:/[^\s/'\",;:)]+)+/?")
_ID = re.compile(r"\b(?=[0-9a-f]*[a-f])(?=[0-9a-f]*[0-9])[0-9a-f]{16,}\b")
_SERIAL = re.compile(r"(?i)(?<=serial)(\W+)[A-Z0-9]{8,}")


class Anonymiser:
    """Replaces names in texts and in JSON values."""

    def __init__(self, nodes: Iterable[str] = ()) -> None:
        """Take the names of this machine and its user, and those of ``nodes``, numbered by alphabet.

        So reports of one cluster agree, whichever machine or program writes them.
        """
        self._names: dict[str, str] = {}
        self._given: dict[str, str] = {}
        for number, node in enumerate(sorted(set(nodes)), 1):
            self._add(node, f"node-{number}")
        host = platform.node()
        for name in (host, host.partition(".")[0]):
            self._add(name, "host")
        for name in (_user(), Path.home().name):
            self._add(name, "user")
        longest_first = sorted(self._names, key=len, reverse=True)
        self._pattern = re.compile(
            "|".join(rf"(?<![^\W_]){re.escape(name)}(?![^\W_])" for name in longest_first) or r"(?!)", re.IGNORECASE
        )
        self._lower = {name.lower(): replacement for name, replacement in self._names.items()}

    def text(self, text: str) -> str:
        """``text`` without personal names."""
        text = _PATH.sub("<path>", text)
        text = _MAC.sub(lambda found: self._numbered("hardware", found[0]), text)
        text = _ADDRESS.sub(self._address, text)
        text = _SERIAL.sub(r"\1<serial>", text)
        text = _ID.sub(lambda found: self._numbered("id", found[0]), text)
        return self._pattern.sub(lambda found: self._lower[found[0].lower()], text)

    def value(self, value: Any) -> Any:
        """A JSON value without personal names, in keys too."""
        match value:
            case str():
                return self.text(value)
            case Mapping():
                return {self.text(str(key)): self.value(inner) for key, inner in value.items()}
            case list() | tuple():
                return [self.value(inner) for inner in value]
        return value

    def _add(self, name: str, replacement: str) -> None:
        if len(name) >= _SHORTEST and name not in {"localhost", "edgepp"}:
            self._names.setdefault(name, replacement)

    def _address(self, found: re.Match[str]) -> str:
        try:
            address = ipaddress.ip_address(found[0])
        except ValueError:
            return found[0]  # a version number or a time
        return "loopback" if address.is_loopback else self._numbered("address", str(address))

    def _numbered(self, kind: str, name: str) -> str:
        if name not in self._given:
            number = 1 + sum(replacement.startswith(f"{kind}-") for replacement in self._given.values())
            self._given[name] = f"{kind}-{number}"
        return self._given[name]


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a user id without a name
        return ""
