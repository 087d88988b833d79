"""Tokens: texts with which machines join unattended. A token holds a cluster's id, its coordinator's key, a secret key.

The holder of a token connects by CURVE with the token's key and asks the coordinator to admit the holder's own key. The
coordinator keeps only the token's public key and the nodes that the token let in, and can revoke a token like a node.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from zmq.utils import z85

from edgepp.cluster.identity import Cluster, PairedNode
from edgepp.cluster.state_files import config_dir, read_private
from edgepp.errors import EdgeppError, UsageError
from edgepp.wire.security import KeyPair

_PREFIX = "edgepp1-"
_CLUSTER_BYTES, _KEY_BYTES, _CHECK_BYTES = 8, 32, 4
_BYTES = _CLUSTER_BYTES + 2 * _KEY_BYTES + _CHECK_BYTES
_HINT = "copy the whole line that `edgepp token` printed"


@dataclass(frozen=True)
class Token:
    """A token as its holder sees it."""

    cluster: str
    coordinator: str
    """The coordinator's public key."""
    keys: KeyPair


def make_token(cluster: Cluster) -> tuple[str, PairedNode]:
    """Make a token: its text, which is shown once, and the entry for ``cluster.tokens``."""
    keys = KeyPair.generate()
    raw = bytes.fromhex(cluster.id) + z85.decode(cluster.coordinator.key) + z85.decode(keys.secret)
    text = _PREFIX + base64.urlsafe_b64encode(raw + _check(raw)).decode().rstrip("=")
    names = (re.fullmatch(r"token-(\d{1,9})", token.name) for token in (*cluster.tokens, *cluster.withdrawn))
    number = 1 + max((int(match[1]) for match in names if match), default=0)
    return text, PairedNode.of(f"token-{number}", keys.public)


def parse_token(text: str) -> Token:
    """Parse a token's text.

    Raises:
        UsageError: ``text`` is not a token, or was cut off or changed; the message contains no part of ``text``.
    """
    encoded = text.strip()
    if not encoded.startswith(_PREFIX):
        raise UsageError("this is not a token of this version of edgepp", _HINT)
    encoded = encoded.removeprefix(_PREFIX)
    length = -(-_BYTES * 8 // 6)
    if len(encoded) < length:
        raise UsageError(f"the token is cut off: {length - len(encoded)} characters are missing", _HINT)
    try:
        raw = base64.b64decode(encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise UsageError("the token contains a character that no token has", _HINT) from error
    body = raw[:-_CHECK_BYTES]
    if len(raw) != _BYTES or _check(body) != raw[-_CHECK_BYTES:]:
        raise UsageError("the token is damaged: its checksum is wrong", _HINT)
    key, secret = (
        z85.encode(body[at : at + _KEY_BYTES]).decode() for at in (_CLUSTER_BYTES, _CLUSTER_BYTES + _KEY_BYTES)
    )
    return Token(body[:_CLUSTER_BYTES].hex(), key, KeyPair.of_secret(secret))


def read_token() -> str | None:
    """The token of this machine, from ``EDGEPP_TOKEN``, ``EDGEPP_TOKEN_FILE`` or ``token`` in the configuration folder.

    None where there is no token.

    Raises:
        EdgeppError: others may read the file, or ``EDGEPP_TOKEN_FILE`` names a file that does not exist.
    """
    if text := os.environ.get("EDGEPP_TOKEN", "").strip():
        return text
    named = os.environ.get("EDGEPP_TOKEN_FILE")
    path = Path(named).expanduser() if named else config_dir() / "token"
    stored = read_private(path)
    if stored is None and named:
        raise EdgeppError(f"there is no token file {path}", "correct or unset EDGEPP_TOKEN_FILE")
    return stored.strip() or None if stored is not None else None


def _check(raw: bytes) -> bytes:
    return blake2b(raw, digest_size=_CHECK_BYTES, person=b"edgepp-token").digest()
