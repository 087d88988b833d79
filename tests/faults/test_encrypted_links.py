"""Bits that change on an encrypted link: the frame is lost, and no token is wrong."""

from __future__ import annotations

from dataclasses import replace

import psutil

from edgepp.engine.request import GenerateOptions
from edgepp.layer_range import LayerRange
from edgepp.model.random_checkpoint import TINY
from edgepp.wire.address import Address
from edgepp.wire.security import KeyPair
from tests.builders.checkpoints import Checkpoints
from tests.engines import greedy_tokens, local_engine
from tests.faults.byte_proxy import FRONT, ByteProxy
from tests.faults.lone_stages import lone_stages, read
from tests.waiting import eventually

PROMPT, TOKENS = [*range(10, 60)], 400


def test_a_changed_bit_gives_no_wrong_token(checkpoints: Checkpoints) -> None:
    path = checkpoints(replace(TINY, context=1 << 15))
    with local_engine(path, [LayerRange(0, 4)], ["auto"]) as engine:
        expected = greedy_tokens(engine, PROMPT, TOKENS)
    with lone_stages(path, LayerRange(0, 2), LayerRange(2, 4), keys=KeyPair.generate()) as stages:
        ports = {
            connection.laddr.port
            for process in stages.processes
            for connection in process.net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN
        }
        assert len(ports) == 4
        direct, stages.addresses = stages.addresses, [Address(FRONT, one.port) for one in stages.addresses]
        proxy = ByteProxy(ports)
        try:
            with stages.open_engine() as engine:
                proxy.skips, proxy.flips = 40, 2  # in the middle of the answer
                result = read(engine.submit(PROMPT, GenerateOptions(max_tokens=TOKENS)))
            result.is_right_or_typed(expected)
            eventually("a bit was changed", proxy.flipped.is_set)
        finally:
            proxy.close()
        stages.addresses = direct
        stages.hold_nothing()
        with stages.open_engine() as engine:
            assert greedy_tokens(engine, PROMPT, TOKENS) == expected
