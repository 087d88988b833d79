"""The handlers of messages: a stage's control and compute threads, and the coordinator."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from typing import get_args

import numpy as np

from edgepp.coordinator.json_codec import encode_question
from edgepp.wire.field_types import Verb
from edgepp.wire.message_codec import encode
from edgepp.wire.messages import Message
from edgepp.wire.messages.clients import Ask, Call, Cancel
from edgepp.wire.messages.control import Detach, Free, Hello, Ping, Pong
from edgepp.wire.messages.data import Batch, Kept, KvPiece
from edgepp.wire.messages.nodes import Enrol, Heartbeat, Leave, Loaded, Loading, NotLoaded
from edgepp.wire.messages.recovery import Expect, Push, Replay
from tests.ceiling import ceiling
from tests.coordinator import close_coordinator, idle_coordinator, tell_coordinator, tick
from tests.fuzz.message_lists import Said, mutator, pack, said, single_messages, unpack
from tests.fuzz.target import Target
from tests.stages import ATTACH, DRIVER, GUEST, WIDTH, Stage, forward
from tests.unit.coordinator.test_json_codec import AGENT, OPTIONS
from tests.wire import KEYS

_VERBS: tuple[Verb, ...] = get_args(Verb)
_LATER_EPOCH = 0x5EED_0F_7E57
"""An epoch that no input names: a ``Free`` before its ``Attach`` would be right to cancel the sequence."""
_ROW = np.ones((1, WIDTH), np.float32).tobytes()


def check_stage(raw: bytes) -> None:
    """After any messages, a stage answers pings, holds no sequence of a forgotten epoch, and runs the next epoch."""
    with closing(Stage()) as stage:
        stage.order(DRIVER, encode(ATTACH))
        for one in unpack(raw):
            sender = GUEST if one.by_guest else DRIVER
            with ceiling():
                if one.on_data:
                    stage.data.put(GUEST, one.frames)
                    stage.compute.receive()
                    stage.work()
                else:
                    stage.order(sender, *one.frames)
        *_, pong = stage.order(DRIVER, encode(Ping(1)))  # behind faults of the frames before
        assert isinstance(pong, Pong)
        for epoch in list(stage.compute._rings.by_epoch):
            stage.order(DRIVER, encode(Detach(epoch)))
        assert not stage.model.lengths, f"sequences left: {stage.model.lengths}"
        assert stage.compute.runner.sequences == 0
        stage.order(DRIVER, encode(ATTACH._replace(epoch=_LATER_EPOCH)))
        stage.data.sent.clear()
        stage.feed(forward(1)._replace(epoch=_LATER_EPOCH), np.ones((1, WIDTH)))
        assert len(stage.data.sent) == 1, "a stage computes no more"


def _talk() -> list[Said]:
    """Messages of an ordinary epoch, and of one that inherits it."""
    batch = Batch(1, 9, (1, 2), (1, 1), WIDTH, "float32", "none", ())
    frames = [
        said(forward(1), _ROW, flags=3),
        said(forward(2, rows=2)._replace(serial=1), _ROW * 2, flags=3),
        said(forward(2, position=1)._replace(serial=2), _ROW, flags=3),
        said(forward(3, position=1)._replace(source=1, serial=3), _ROW, flags=3),
        said(batch._replace(serial=4), _ROW * 2, flags=3),
    ]
    orders: tuple[Message, ...] = (
        Free(1, 1),
        ATTACH._replace(epoch=3, inherits=1, copies_from=KEYS[1], keeps_copies=True),
        Replay(3, 2, 64, 0, 2, 0),
        Expect(3, 4, 64, 2, KEYS[1]),
        Push(3, 2, "kv", 0, 4, 0, 2, "127.0.0.1:1", KEYS[1], 3),
        Ping(3),
        Detach(3),
    )
    piece = KvPiece(3, 4, "restore", 0, 4, 0, 2, "1 float32 1x8", 0)
    pieces = [said(piece, _ROW * 16, flags=3), said(piece._replace(purpose="copy"), _ROW * 16, flags=3)]
    pieces.append(said(Kept(3, 2, 4, 0, 4, 1, piece.layout, 1, reply=False), flags=3))
    return [said(Hello("x")), said(ATTACH), *frames, *map(said, orders[:4]), *pieces, *map(said, orders[4:])]


def _talks() -> Iterator[bytes]:
    talk = _talk()
    yield from (pack(talk[:11]), pack([*talk[1:5], *talk[8:]]), pack([]))
    yield from (pack([one]) for one in single_messages())


def check_coordinator(raw: bytes) -> None:
    """Any messages of the owner and of a member leave a coordinator that knows its member and does periodic work."""
    coordinator = idle_coordinator()
    owner = DRIVER._replace(key=coordinator.trust_store.cluster.coordinator.key)
    try:
        with ceiling():
            for one in unpack(raw):
                tell_coordinator(coordinator, GUEST if one.by_guest else owner, one.frames)
            tick(coordinator)
    finally:
        close_coordinator(coordinator)
    assert coordinator.error is None


def _member_talk() -> list[Said]:
    """Messages of a node and of a client."""
    enrol = Enrol(7, "mini", "0.1.0", "10.0.0.2", 1 << 34, "onnx", "cpu", 4, 1, 0, 0, 10**10, 10**12)
    return [
        said(enrol, flags=1),
        said(Heartbeat(7, 1 << 33, 10**15, 500), flags=1),
        said(Loading(1000, 0, 5, 10, "loading"), flags=1),
        said(Loaded(1000, 0, 5721, 77, "onnx", "cpu", 10, 10, 100, 100), flags=1),
        said(NotLoaded(1000, 0, "no memory", "more memory"), flags=1),
        said(Ask(1), json.dumps(encode_question(AGENT, OPTIONS)).encode(), flags=1),
        said(Cancel(1), flags=1),
        *(said(Call(n, verb), b'{"name": "mini", "model": "m", "key": "x"}') for n, verb in enumerate(_VERBS)),
        said(Leave(7), flags=1),
    ]


def _member_talks() -> Iterator[bytes]:
    yield pack(_member_talk()[:8])
    yield pack(_member_talk()[8:])
    yield from (pack([one]) for one in single_messages())


TARGETS = (
    Target("stage", check_stage, _talks, mutator([*_talk(), *single_messages()])),
    Target("coordinator", check_coordinator, _member_talks, mutator([*_member_talk(), *single_messages()])),
)
