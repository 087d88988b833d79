"""Check of encryption: what a listener on the way sees, and what each port of the cluster offers."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgepp.engine.request import GenerateOptions
from edgepp.python_api import connect
from edgepp.selftest.relay import Relay
from edgepp.selftest.result import CheckResult
from edgepp.selftest.setting import Setting
from edgepp.wire.address import Address

# The greeting of ZMTP 3 (rfc.zeromq.org/spec/23): signature, version, mechanism of 20 bytes, filler.
_GREETING = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x00" + b"CURVE".ljust(20, b"\0") + bytes(32)
_MECHANISM = slice(12, 32)
_ANSWER_S = 5.0
_LEAST_BYTES = 5
"""Bytes of a piece of text that are hardly met by chance among some thousand random ones."""


@dataclass(frozen=True)
class Overheard:
    """A question and its answer, and all bytes that a listener between client and coordinator saw of them."""

    seen: bytes
    question: str
    pieces: Sequence[str]
    """Text of the answer as it was streamed, piece by piece."""

    @property
    def clear(self) -> list[str]:
        """What can be read in the bytes."""
        pieces = (piece.strip().encode() for piece in self.pieces)
        needles = {"the question": [self.question.encode()]}
        needles["the answer"] = [piece for piece in pieces if len(piece) >= _LEAST_BYTES]
        return [what for what, texts in needles.items() if any(text in self.seen for text in texts)]


async def encryption(setting: Setting) -> CheckResult:
    """A question through a relay that keeps all bytes, and the mechanism that each port offers to a stranger."""
    cluster = await setting.own()
    question = f"selftest {secrets.token_hex(8)} walks along the shore"
    async with Relay(Address.parse(cluster.address)) as relay:
        with cluster.at_home():
            async with connect(relay.address) as connection:
                answer = connection.ask(question, GenerateOptions(max_tokens=32, ignore_eos=True), raw=True)
                pieces = [piece async for piece in answer]
        overheard = Overheard(bytes(relay.seen), question, pieces)
    offered = {name: await mechanism(address) for name, address in (await _ports(setting)).items()}
    return judged(overheard, offered)


def judged(overheard: Overheard, offered: Mapping[str, str]) -> CheckResult:
    """The result for what was overheard, and for the security mechanism that each port names."""
    clear, seen = overheard.clear, overheard.seen
    plain = [port for port, name in offered.items() if name != "CURVE"]
    handshake = b"CURVE" in seen and len(seen) > len(_GREETING)
    details = {"relayed_bytes": len(seen), "clear": clear, "curve": handshake, "offered": dict(offered)}
    line = f"{len(seen)} bytes of a question and its answer hold no plain text"
    if clear:
        line = f"{' and '.join(clear)} can be read on the way"
    elif not handshake:
        line = f"{len(seen)} bytes were seen of a question and its answer, without the handshake of CURVE"
    line += f"; {len(offered) - len(plain)} of {len(offered)} ports offer CURVE alone"
    if plain:
        line += ", not " + ", ".join(f"{port} ({offered[port]})" for port in plain)
    ok = handshake and not clear and not plain and len(offered) > 1  # the coordinator and a stage
    return CheckResult(ok, line, float(len(clear) + len(plain)), 0.0, "in clear", details=details)


async def _ports(setting: Setting) -> dict[str, Address]:
    """The coordinator's and the stages' addresses, by words that name none of them."""
    status = await (await setting.subject()).status()
    port = Address.parse(str(status["address"])).port
    found: dict[str, Address] = {}
    for node in status["nodes"]:
        if "coordinator" in node["roles"]:
            found["coordinator"] = Address(str(node["address"]), port)
    found |= {f"stage {stage['index']}": Address.parse(str(stage["address"])) for stage in status["stages"]}
    return found


async def mechanism(address: Address) -> str:
    """The security mechanism that a port names, such as CURVE or NULL; ``nothing`` where none comes."""
    try:
        async with asyncio.timeout(_ANSWER_S):
            reader, writer = await asyncio.open_connection(address.host, address.port)
            try:
                writer.write(_GREETING[: _MECHANISM.start])  # a port may leave at a mechanism that is not its own
                greeting = await reader.readexactly(_MECHANISM.stop)
            finally:
                writer.close()
    except (OSError, EOFError, TimeoutError):
        return "nothing"
    return greeting[_MECHANISM].rstrip(b"\0").decode("ascii", "replace")
