"""The pairing protocol: how a node that knows an invitation's code becomes a member. SPAKE2, then two sealed boxes.

    client ──► server   [version, "join", number, A, attempt]  A, B: SPAKE2 elements with the code as password
           ◄──          [version, "server", B, cluster]        the cluster's id
           ──►          [version, "prove", box]                the joining node's name and public key
           ◄──          [version, "admit", box]                cluster id, coordinator's name, key and cluster port
           ◄──          [version, "refuse", cause, left]       in place of any answer; the guesses that are left

The client is the joining node, the server is the coordinator. Each message is a msgpack array behind its length in two
bytes. Each box is sealed with ChaCha20-Poly1305 under a key that is used once, derived from SPAKE2's key and bound to
every byte before it, so a recording is of no use.

A client that does not know the code can test one guess per exchange, and has to send a box for it: nothing that depends
on the key leaves the server before that box has opened. So the server counts boxes that do not open, not connections
that end. A false server can test one guess with the client's box, so the client sends at most ``codes.MAX_GUESSES``.

``attempt`` is 16 random bytes that a client draws once per code that its user typed. The same attempt may arrive over
several of the coordinator's addresses; after one wrong box the server opens no other box of the attempt, and repeats
its answer. ``attempt`` and ``cluster`` may be left out.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Literal, TypeAlias, get_args

import msgpack
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from spake2 import SPAKE2_A, SPAKE2_B, SPAKEError
from spake2.ed25519_basic import NotOnCurve

from edgepp.errors import RemoteProtocolError, UsageError
from edgepp.wire.address import Address

VERSION = 1
MESSAGE_BYTES = 1024
ATTEMPT_ID_BYTES = 16
EXCHANGE_S = 10.0
"""The longest time for a whole exchange."""
RefusalCause: TypeAlias = Literal["wrong", "void", "expired", "used", "failed", "unknown"]
REFUSAL_CAUSES: tuple[RefusalCause, ...] = get_args(RefusalCause)
_ELEMENT_BYTES = 33
_HEAD_BYTES = 2
_NONCE = bytes(12)  # a key seals one box


class OtherVersionError(RemoteProtocolError):
    """The other side speaks another version of the pairing protocol."""


class Channel:
    """Pairing messages over one TCP connection with a deadline."""

    def __init__(self, connection: socket.socket, limit_s: float = EXCHANGE_S) -> None:
        self._connection = connection
        self._received = b""
        """The part of the next message that has arrived."""
        self._ended = False
        self.transcript = sha256()
        """The digest of all messages, sent and received."""
        self.allow(limit_s)

    def allow(self, limit_s: float) -> None:
        """Set the deadline to ``limit_s`` seconds from now."""
        self._deadline_s = time.monotonic() + limit_s

    def send(self, *fields: object) -> None:
        """Send one message.

        Raises:
            OSError: the connection broke, or the deadline has passed.
        """
        self.flush(self.prepare(*fields))

    def prepare(self, *fields: object) -> bytes:
        """Encode one message for ``flush``, and add it to the transcript."""
        packed: bytes = msgpack.packb((VERSION, *fields))
        raw = len(packed).to_bytes(_HEAD_BYTES, "big") + packed
        self.transcript.update(raw)
        return raw

    def flush(self, raw: bytes) -> None:
        """Send a message that ``prepare`` encoded.

        Raises:
            OSError: the connection broke, or the deadline has passed.
        """
        self._set_timeout()
        self._connection.sendall(raw)

    def receive(self) -> tuple[Any, ...] | None:
        """The fields of the next message, kind first, unchecked; None where the connection has ended.

        Raises:
            RemoteProtocolError: the bytes are not a pairing message.
            OtherVersionError: the message is of another version.
            OSError: the connection broke, or the deadline has passed.
        """
        while self._num_missing() and not self._ended:
            self._set_timeout()
            self._read()
        raw, self._received = self._received, b""
        if self._ended:
            if raw:
                raise RemoteProtocolError("a pairing message is cut off")
            return None
        try:
            value = msgpack.unpackb(raw[_HEAD_BYTES:], use_list=False, max_map_len=0, max_ext_len=0)
        except (ValueError, msgpack.UnpackException, RecursionError) as error:
            raise RemoteProtocolError(f"a pairing message is not msgpack: {error}") from error
        if type(value) is not tuple or len(value) < 2:
            raise RemoteProtocolError("a pairing message is not an array")
        if value[0] != VERSION:
            raise OtherVersionError(
                f"version {value[0]!r:.20} of the pairing protocol, where this edgepp has {VERSION}"
            )
        self.transcript.update(raw)
        return value[1:]

    def can_receive(self) -> bool:
        """Read what has arrived, without waiting; returns whether ``receive`` would not wait.

        Raises:
            RemoteProtocolError: the bytes are not a pairing message.
            OSError: the connection broke.
        """
        self._connection.setblocking(False)
        with suppress(BlockingIOError):
            while self._num_missing() and not self._ended:
                self._read()
        return self._ended or not self._num_missing()

    def _num_missing(self) -> int:
        """How many bytes of the message's head, or of the message behind its head, have not arrived."""
        if len(self._received) < _HEAD_BYTES:
            return _HEAD_BYTES - len(self._received)
        length = int.from_bytes(self._received[:_HEAD_BYTES], "big")
        if not 0 < length <= MESSAGE_BYTES:
            raise RemoteProtocolError(f"a pairing message of {length} bytes")
        return _HEAD_BYTES + length - len(self._received)

    def _read(self) -> None:
        part = self._connection.recv(self._num_missing())
        self._ended = not part
        self._received += part

    def _set_timeout(self) -> None:
        left_s = self._deadline_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("the pairing exchange took too long")
        self._connection.settimeout(left_s)


@dataclass(frozen=True)
class Seal:
    """The two keys of one exchange, 32 bytes each: one per side."""

    client: bytes = field(repr=False)
    server: bytes = field(repr=False)
    transcript: bytes

    @classmethod
    def of(cls, key: bytes, transcript: bytes) -> Seal:
        """Derive the keys by HKDF from SPAKE2's ``key`` and the digest of the messages before it."""
        raw = HKDF(SHA256(), 64, salt=transcript, info=b"edgepp pairing 1").derive(key)
        return cls(raw[:32], raw[32:], transcript)

    def close(self, side: Literal["client", "server"], fields: Sequence[object]) -> bytes:
        """Seal ``fields`` in a box of one side."""
        packed: bytes = msgpack.packb(tuple(fields))
        return ChaCha20Poly1305(getattr(self, side)).encrypt(_NONCE, packed, self.transcript)

    def open(self, side: Literal["client", "server"], box: object) -> tuple[Any, ...] | None:
        """The fields in a box of one side; None where the box does not open: the codes differ, or the box was changed.

        Raises:
            RemoteProtocolError: the box opens and does not hold fields.
        """
        if type(box) is not bytes:
            return None
        try:
            raw = ChaCha20Poly1305(getattr(self, side)).decrypt(_NONCE, box, self.transcript)
        except InvalidTag:
            return None
        try:
            value = msgpack.unpackb(raw, use_list=False, max_map_len=0, max_ext_len=0)
        except (ValueError, msgpack.UnpackException, RecursionError) as error:
            raise RemoteProtocolError(f"a box does not hold msgpack: {error}") from error
        if type(value) is not tuple:
            raise RemoteProtocolError("a box does not hold fields")
        return value


class Spake:
    """One side of one SPAKE2 exchange."""

    def __init__(self, side: Literal["client", "server"], code: str) -> None:
        kind = SPAKE2_A if side == "client" else SPAKE2_B
        self._half = kind(code.encode(), idA=b"edgepp client", idB=b"edgepp server")
        self.element: bytes = self._half.start()

    def seal(self, element: object, transcript: bytes) -> Seal:
        """The keys, from the other side's element (33 bytes) and the digest of all messages so far.

        Raises:
            RemoteProtocolError: ``element`` is not an element of the group.
        """
        if type(element) is not bytes or len(element) != _ELEMENT_BYTES:
            raise RemoteProtocolError("a pairing message without an element")
        try:
            key = self._half.finish(element)
        except (SPAKEError, NotOnCurve, ValueError, AssertionError) as error:
            raise RemoteProtocolError(f"a bad element: {error}") from error
        return Seal.of(key, transcript)


def expect(message: tuple[Any, ...], kind: str, *types: type, last: Any = None) -> tuple[Any, ...]:
    """The fields of a message of this kind, each of its type; ``last`` is the value of a last field that is left out.

    Raises:
        RemoteProtocolError: the message is of another kind, or has other fields.
    """
    fields = message[1:] if last is None or len(message) > len(types) else (*message[1:], last)
    if message[0] != kind or tuple(map(type, fields)) != types:
        raise RemoteProtocolError(f"not a '{kind}' message")
    return fields


def listen(address: Address) -> socket.socket:
    """Listen for pairing clients; host ``*`` is every interface, IPv6 and IPv4.

    Raises:
        UsageError: the port is taken, or ``address`` is not this machine's.
    """
    try:
        if address.host == "*" and socket.has_dualstack_ipv6():
            return socket.create_server(("", address.port), family=socket.AF_INET6, dualstack_ipv6=True)
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        return socket.create_server(("" if address.host == "*" else address.host, address.port), family=family)
    except (OSError, OverflowError) as error:
        raise UsageError(
            f"cannot take invitation codes on {address}: {error}", "the port after the cluster's port must be free"
        ) from error
