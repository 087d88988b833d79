"""The few bytes that make a member of a stranger who knows an invitation's code: SPAKE2, then two sealed boxes.

    joiner ──► desk   [version, "join", number, A, try]  A, B: SPAKE2 with the code as its password
           ◄──        [version, "desk", B, cluster]      the cluster's id
           ──►        [version, "prove", box]            the joiner's name and public key
           ◄──        [version, "admit", box]            cluster id, coordinator's name, key and control port
           ◄──        [version, "refuse", cause, left]   in place of any answer

Each box is sealed with ChaCha20-Poly1305 under a key that is used once, made from SPAKE2's key and bound to every byte
that went before, so a recording is of no use. Who does not know the code can test one guess by a whole exchange, and
must send a box to do so: nothing that depends on the key leaves the desk before that box has opened. So the desk counts
boxes that do not open, not connections that end. The other way round a false desk can test one guess by the joiner's
box, so the joiner sends few of them.

``try`` are 16 bytes that a joiner draws once for what its user typed. It may come by several of the coordinator's
addresses; after one wrong box the desk opens no other of the same try, and repeats its answer. ``try`` and ``cluster``
may be left out.
"""

from __future__ import annotations

import logging
import selectors
import socket
import time
from collections.abc import Generator, Iterator, Sequence
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
from edgepp.wire.transport import Address

VERSION = 1
MESSAGE_BYTES = 1024
TRY_BYTES = 16
EXCHANGE_S = 10.0
"""The longest that a connection may take in all."""
Cause: TypeAlias = Literal["wrong", "void", "expired", "used", "failed", "unknown"]
CAUSES: tuple[Cause, ...] = get_args(Cause)
_LOG = logging.getLogger(__name__)
_ELEMENT_BYTES = 33
_NONCE = bytes(12)  # a key seals one box


class OtherVersionError(RemoteProtocolError):
    """The other side pairs by another version of the protocol."""


class Channel:
    """Messages over one TCP connection that ends in time."""

    def __init__(self, connection: socket.socket, seconds: float = EXCHANGE_S) -> None:
        self._connection = connection
        self.transcript = sha256()
        self.allow(seconds)

    def allow(self, seconds: float) -> None:
        """End so many seconds from now."""
        self._deadline_s = time.monotonic() + seconds

    def send(self, *fields: object) -> None:
        """Send one message.

        Raises:
            OSError: the other side is gone, or time is up.
        """
        self.flush(self.prepare(*fields))

    def prepare(self, *fields: object) -> bytes:
        """One message, noted in the transcript, for ``flush``."""
        packed: bytes = msgpack.packb((VERSION, *fields))
        raw = len(packed).to_bytes(2, "big") + packed
        self.transcript.update(raw)
        return raw

    def flush(self, raw: bytes) -> None:
        """Send what was prepared.

        Raises:
            OSError: the other side is gone, or time is up.
        """
        self._hurry()
        self._connection.sendall(raw)

    def receive(self) -> tuple[Any, ...] | None:
        """The fields of the next message, kind first, unchecked; None where the connection has ended.

        Raises:
            RemoteProtocolError: it is no message, or of another version.
            OSError: the connection broke, or time is up.
        """
        head = self._read(2)
        if not head:
            return None
        length = int.from_bytes(head, "big")
        if not 0 < length <= MESSAGE_BYTES:
            raise RemoteProtocolError(f"a pairing message of {length} bytes")
        raw = self._read(length)
        try:
            value = msgpack.unpackb(raw, use_list=False, max_map_len=0, max_ext_len=0)
        except (ValueError, msgpack.UnpackException, RecursionError) as error:
            raise RemoteProtocolError(f"a pairing message is not msgpack: {error}") from error
        if type(value) is not tuple or len(value) < 2:
            raise RemoteProtocolError("a pairing message is not an array")
        if value[0] != VERSION:
            raise OtherVersionError(f"it pairs by version {value[0]!r:.20}, this edgepp by version {VERSION}")
        self.transcript.update(head + raw)
        return value[1:]

    def _read(self, count: int) -> bytes:
        read = b""
        while len(read) < count:
            self._hurry()
            part = self._connection.recv(count - len(read))
            if not part:
                if read:
                    raise RemoteProtocolError("a pairing message is cut off")
                return b""
            read += part
        return read

    def _hurry(self) -> None:
        left_s = self._deadline_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("the exchange took too long")
        self._connection.settimeout(left_s)


@dataclass(frozen=True)
class Seal:
    """The two keys that came of one exchange."""

    joiner: bytes = field(repr=False)
    desk: bytes = field(repr=False)
    transcript: bytes

    @classmethod
    def of(cls, key: bytes, transcript: bytes) -> Seal:
        """From SPAKE2's key and the digest of the messages that led to it."""
        raw = HKDF(SHA256(), 64, salt=transcript, info=b"edgepp pairing 1").derive(key)
        return cls(raw[:32], raw[32:], transcript)

    def close(self, side: Literal["joiner", "desk"], fields: Sequence[object]) -> bytes:
        """A box from one side with ``fields`` in it."""
        packed: bytes = msgpack.packb(tuple(fields))
        return ChaCha20Poly1305(getattr(self, side)).encrypt(_NONCE, packed, self.transcript)

    def open(self, side: Literal["joiner", "desk"], box: object) -> tuple[Any, ...] | None:
        """What is in a box from one side; None where it does not open: the codes differ, or it was tampered with.

        Raises:
            RemoteProtocolError: it opens, and there is something else in it than fields.
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
    """One side's half of one SPAKE2 exchange."""

    def __init__(self, side: Literal["joiner", "desk"], code: str) -> None:
        kind = SPAKE2_A if side == "joiner" else SPAKE2_B
        self._half = kind(code.encode(), idA=b"edgepp joiner", idB=b"edgepp desk")
        self.element: bytes = self._half.start()

    def seal(self, element: object, transcript: bytes) -> Seal:
        """The keys, from the other side's element and the digest of all messages so far.

        Raises:
            RemoteProtocolError: it is not an element of the group.
        """
        if type(element) is not bytes or len(element) != _ELEMENT_BYTES:
            raise RemoteProtocolError("a pairing message without an element")
        try:
            key = self._half.finish(element)
        except (SPAKEError, NotOnCurve, ValueError, AssertionError) as error:
            raise RemoteProtocolError(f"a bad element: {error}") from error
        return Seal.of(key, transcript)


def expect(message: tuple[Any, ...], kind: str, *types: type, last: Any = None) -> tuple[Any, ...]:
    """The fields of a message of this kind, each of its type; ``last`` stands in where the last one is left out.

    Raises:
        RemoteProtocolError: it is not one.
    """
    fields = message[1:] if last is None or len(message) > len(types) else (*message[1:], last)
    if message[0] != kind or tuple(map(type, fields)) != types:
        raise RemoteProtocolError(f"not a '{kind}' message")
    return fields


def listen(address: Address) -> socket.socket:
    """Listen for joiners; host ``*`` is every interface, IPv6 and IPv4.

    Raises:
        UsageError: the port is taken, or it is not an address of this machine.
    """
    try:
        if address.host == "*" and socket.has_dualstack_ipv6():
            return socket.create_server(("", address.port), family=socket.AF_INET6, dualstack_ipv6=True)
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        return socket.create_server(("" if address.host == "*" else address.host, address.port), family=family)
    except (OSError, OverflowError) as error:
        raise UsageError(
            f"cannot take invitations on {address}: {error}", "the port after the cluster's must be free"
        ) from error


def connected(addresses: Sequence[Address], end_s: float) -> Generator[tuple[Address, socket.socket], None, None]:
    """A connection to the desk of each address that has one, as they come; all are tried at once."""
    with selectors.DefaultSelector() as selector:
        try:
            for address in dict.fromkeys(addresses):
                for connection in _dial(address):
                    selector.register(connection, selectors.EVENT_WRITE, (address, connection))
            while selector.get_map() and (left_s := end_s - time.monotonic()) > 0:
                for key, _ in selector.select(left_s):
                    address, connection = key.data
                    selector.unregister(connection)
                    with connection:
                        if connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
                            yield address, connection
        finally:
            for key in list(selector.get_map().values()):
                key.data[1].close()


def _dial(address: Address) -> Iterator[socket.socket]:
    """Connections to the desk beside ``address`` on their way, one for each of its IP addresses."""
    try:
        found = socket.getaddrinfo(address.host, address.port + 1, type=socket.SOCK_STREAM)
    except (OSError, OverflowError, UnicodeError) as error:
        _LOG.debug("cannot look up %s: %s", address, error)
        return
    for family, kind, protocol, _, where in found:
        connection = socket.socket(family, kind, protocol)
        connection.setblocking(False)
        try:
            connection.connect(where)
        except BlockingIOError:
            yield connection
        except OSError as error:
            _LOG.debug("cannot reach %s: %s", address, error)
            connection.close()
        else:
            yield connection
