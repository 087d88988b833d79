"""The selftest fails where it must: a link in clear, a slow link, a slow cluster, and a plan that is far off."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import zmq

from edgepp.benchmark.report import SingleResult
from edgepp.benchmark.workload import SingleRun, single_result
from edgepp.engine.timing import Timing
from edgepp.errors import EdgeppError
from edgepp.selftest import speed
from edgepp.selftest.encryption import Overheard, judged, mechanism
from edgepp.selftest.relay import Relay
from edgepp.selftest.result import CheckResult, CheckRun
from edgepp.selftest.run import CHECKS, Check, run
from edgepp.selftest.setting import Setting
from edgepp.selftest.subject import Subject
from edgepp.wire.address import Address
from tests.waiting import PATIENCE_S

QUESTION, PIECES = "where do the herons sleep", (" by", " the", " water", " at", " night")


class Known(Subject):
    """A cluster whose state is given."""

    def __init__(self, status: Mapping[str, Any]) -> None:
        super().__init__("tiny")
        self._status = status

    async def status(self) -> Mapping[str, Any]:
        return self._status


class At(Setting):
    """A selftest that looks at a cluster whose state is given."""

    def __init__(self, **status: Any) -> None:
        super().__init__(cluster=True, say=lambda _: None)
        self.busy = False
        self._known = Known({"stages": [], "nodes": [], "exact": True} | status)

    async def subject(self) -> Subject:
        return self._known


def outcome(name: str, setting: Setting) -> CheckResult:
    """Result of one check, as the selftest reports it."""

    async def first() -> CheckRun:
        (check,) = (check for check in CHECKS if check.name == name)
        return await anext(run([check], setting, lambda _: None))

    return asyncio.run(first()).result


@pytest.fixture
def plain_port() -> Iterator[zmq.Socket[bytes]]:
    """A socket without encryption that answers nothing by itself."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.setsockopt(zmq.LINGER, 0)
        router.setsockopt(zmq.RCVTIMEO, round(1000 * PATIENCE_S))
        router.bind("tcp://127.0.0.1:*")
        yield router


def test_a_link_in_clear_fails(plain_port: zmq.Socket[bytes]) -> None:
    address = Address.parse(plain_port.getsockopt_string(zmq.LAST_ENDPOINT).removeprefix("tcp://"))

    def ask(relay: str) -> None:
        with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
            dealer.setsockopt(zmq.RCVTIMEO, round(1000 * PATIENCE_S))
            dealer.connect(f"tcp://{relay}")
            dealer.send(QUESTION.encode())
            who, _ = plain_port.recv_multipart()
            for piece in PIECES:
                plain_port.send_multipart([who, piece.encode()])
                dealer.recv()

    async def listen() -> tuple[bytes, dict[str, str]]:
        async with Relay(address) as relay:
            await asyncio.to_thread(ask, relay.address)
            return bytes(relay.seen), {"coordinator": "CURVE", "stage 0": await mechanism(address)}

    seen, offered = asyncio.run(listen())
    assert offered["stage 0"] == "NULL"
    found = judged(Overheard(seen, QUESTION, PIECES), offered)
    assert found.ok is False
    assert found.details["clear"] == ["the question", "the answer"]
    assert "can be read on the way; 1 of 2 ports offer CURVE alone, not stage 0 (NULL)" in found.found


@pytest.mark.parametrize("seen", [b"", b"CURVE" + bytes(100) + b"water"])
def test_a_handshake_alone_is_no_proof(seen: bytes) -> None:
    assert judged(Overheard(seen, QUESTION, PIECES), {"coordinator": "CURVE", "stage 0": "CURVE"}).ok is False


def test_bytes_without_text_after_a_handshake_pass() -> None:
    seen = b"CURVE" + bytes(100)
    assert judged(Overheard(seen, QUESTION, PIECES), {"coordinator": "CURVE", "stage 0": "CURVE"}).ok is True


@pytest.mark.parametrize(("hop_s", "ok"), [(0.002, True), (0.2, False)])
def test_a_slow_link_fails(hop_s: float, ok: bool) -> None:
    stage = {"index": 0, "node": "pi", "hop_s": hop_s, "link_bytes_per_s": 1e6}
    found = outcome("hops", At(stages=[stage], nodes=[{"name": "pi", "rtt_s": 0.01}]))
    assert found.ok is ok
    assert bool(found.hint) is not ok


def rates(decode: float) -> SingleResult:
    """A request with ``decode`` tokens per second."""
    timing = Timing(0.0, first_token_s=1.0, last_token_s=1.0 + 10 / decode, tokens=11)
    return single_result([SingleRun(100, timing)])


@pytest.mark.parametrize(("ours", "ok"), [(60.0, True), (40.0, False)])
def test_a_cluster_at_less_than_half_of_one_process_fails(ours: float, ok: bool) -> None:
    setting = At()
    setting.measured = rates(ours), rates(100.0)
    found = outcome("speed", setting)
    assert found.ok is ok
    setting.busy = True
    assert outcome("speed", setting).ok is None


@pytest.mark.parametrize(("planned", "ok"), [(60.0, True), (110.0, False), (24.0, False)])
def test_a_prediction_that_is_far_off_fails(planned: float, ok: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"decode_tokens_per_s": planned, "prefill_tokens_per_s": 500.0}
    monkeypatch.setattr(speed, "predicted", lambda *_: told)
    setting = At()
    setting.measured = rates(50.0), rates(50.0)
    found = outcome("plan", setting)
    assert found.ok is ok
    assert bool(found.hint) is not ok


def test_a_check_that_ends_by_an_error_or_late_fails_with_a_next_step() -> None:
    async def refuse(_: Setting) -> CheckResult:
        raise EdgeppError("no such node", "name another")

    async def hang(_: Setting) -> CheckResult:
        return await asyncio.Future()

    checks = [Check("one", "", refuse, "look"), Check("two", "", hang, "look", limit_s=0.01)]

    async def all_of() -> list[CheckResult]:
        return [one.result async for one in run(checks, At(), lambda _: None)]

    refused, late = asyncio.run(all_of())
    assert (refused.ok, refused.found, refused.hint) == (False, "no such node", "name another")
    assert (late.ok, late.found, late.hint) == (False, "not finished within 0 s", "look")
