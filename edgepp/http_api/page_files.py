"""The files of the web page: read once, served under their own paths and no others.

``edgepp/web/index.html`` is the page at ``/``; every other file of that folder is at ``/web/`` and its path there.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "web"
_MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
"""Files of other types, such as licences, are kept in the folder and not served."""


@dataclass(frozen=True)
class PageFile:
    """One file in the form in which it is sent."""

    media_type: str
    body: bytes
    etag: str
    """A strong validator: the start of the SHA-256 of ``body``, quoted."""


@functools.cache
def page_files() -> Mapping[str, PageFile]:
    """All files of the page by their paths in URLs."""
    found = {}
    for file in sorted(FOLDER.rglob("*")):
        media_type = _MEDIA_TYPES.get(file.suffix)
        if media_type is not None and file.is_file():
            name = file.relative_to(FOLDER).as_posix()
            body = file.read_bytes()
            etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
            found["/" if name == "index.html" else f"/web/{name}"] = PageFile(media_type, body, etag)
    return found
