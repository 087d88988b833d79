"""Permissions: for every kind of message, the sockets on which and the roles from which the message is accepted.

A role follows from the key that the other end of a connection has proved. A stage admits all nodes of its cluster,
since stages send to each other, but takes orders only from its ``driver``: the coordinator of the cluster, or, without
encryption, anyone. The holder of a token may send ``Adopt`` and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias, get_args

from edgepp.errors import RemoteProtocolError
from edgepp.wire.field_types import Verb
from edgepp.wire.messages import Message
from edgepp.wire.messages.clients import Answered, Ask, Call, Cancel, Declined, Piece, Reply, Waiting
from edgepp.wire.messages.control import (
    Attach,
    Attached,
    Detach,
    Fault,
    FrameLost,
    Free,
    Hello,
    Ping,
    Pong,
    Refused,
    Unreached,
    Void,
    Welcome,
)
from edgepp.wire.messages.data import Batch, Echo, Forward, Hidden, Kept, KvPiece
from edgepp.wire.messages.drafts import Drafter, Forget, Guessed, Read, Unread
from edgepp.wire.messages.nodes import (
    Adopt,
    Drained,
    Enrol,
    Enrolled,
    Expelled,
    Heartbeat,
    HeartbeatAck,
    Leave,
    Leaving,
    Load,
    Loaded,
    Loading,
    NotLoaded,
    Restart,
    Retire,
    Unload,
    View,
    Warm,
)
from edgepp.wire.messages.rank_meetings import MeasureSum, RankAt, RankListens, SumMeasured
from edgepp.wire.messages.ranks import (
    CacheDone,
    CacheOrder,
    HeadPart,
    KvExported,
    KvOrder,
    Partial,
    RankFault,
    RankJoined,
    RankTimings,
    StepOrder,
)
from edgepp.wire.messages.recovery import Expect, Held, Inventory, Push, Rebuilt, Replay

Socket: TypeAlias = Literal["control", "data", "ranks", "draft", "cluster"]
Role: TypeAlias = Literal["driver", "guest", "stage", "first rank", "rank", "drafter", "coordinator", "member", "token"]
"""Role of the sender.

To a stage or drafting process: ``driver``, the coordinator that may order it; ``guest``, another admitted node. From a
stage: ``stage``; from a drafting process: ``drafter``. Between the ranks of a stage: ``first rank``, rank 0; ``rank``,
another one. To a coordinator: ``member``, a paired node or a client on one; ``token``, the holder of a token. From a
coordinator: ``coordinator``.
"""
Permission: TypeAlias = frozenset[tuple[Socket, Role]]


def _by(socket: Socket, *roles: Role) -> Permission:
    return frozenset((socket, role) for role in roles)


SPEAKERS: Mapping[type, Permission] = {
    Hello: _by("control", "driver", "guest") | _by("draft", "driver", "guest"),
    Ping: _by("control", "driver", "guest"),
    Attach: _by("control", "driver"),
    Free: _by("control", "driver"),
    Void: _by("control", "driver"),
    Detach: _by("control", "driver"),
    Inventory: _by("control", "driver"),
    Replay: _by("control", "driver"),
    Expect: _by("control", "driver"),
    Push: _by("control", "driver"),
    Welcome: _by("control", "stage"),
    Pong: _by("control", "stage"),
    Attached: _by("control", "stage"),
    Unreached: _by("control", "stage"),
    Held: _by("control", "stage"),
    Rebuilt: _by("control", "stage"),
    Fault: _by("control", "stage"),
    FrameLost: _by("control", "stage"),
    Refused: _by("control", "stage") | _by("draft", "drafter") | _by("cluster", "coordinator"),
    Echo: _by("data", "driver", "guest", "stage") | _by("ranks", "guest"),
    Forward: _by("data", "driver", "guest"),
    Batch: _by("data", "driver", "guest", "stage"),
    Hidden: _by("data", "stage"),
    KvPiece: _by("data", "driver", "guest"),
    Kept: _by("data", "driver", "guest", "stage"),
    RankJoined: _by("ranks", "first rank", "rank"),
    CacheOrder: _by("ranks", "first rank"),
    CacheDone: _by("ranks", "rank"),
    KvOrder: _by("ranks", "first rank"),
    KvExported: _by("ranks", "rank"),
    StepOrder: _by("ranks", "first rank"),
    Partial: _by("ranks", "first rank", "rank"),
    RankTimings: _by("ranks", "rank"),
    HeadPart: _by("ranks", "rank"),
    RankFault: _by("ranks", "first rank", "rank"),
    Read: _by("draft", "driver"),
    Forget: _by("draft", "driver"),
    Drafter: _by("draft", "drafter"),
    Guessed: _by("draft", "drafter"),
    Unread: _by("draft", "drafter"),
    Enrol: _by("cluster", "member"),
    Heartbeat: _by("cluster", "member"),
    Loading: _by("cluster", "member"),
    Loaded: _by("cluster", "member"),
    NotLoaded: _by("cluster", "member"),
    RankListens: _by("cluster", "member"),
    SumMeasured: _by("cluster", "member"),
    Leaving: _by("cluster", "member"),
    Leave: _by("cluster", "member"),
    Call: _by("cluster", "member"),
    Ask: _by("cluster", "member"),
    Cancel: _by("cluster", "member"),
    Adopt: _by("cluster", "token"),
    Enrolled: _by("cluster", "coordinator"),
    HeartbeatAck: _by("cluster", "coordinator"),
    View: _by("cluster", "coordinator"),
    Load: _by("cluster", "coordinator"),
    Unload: _by("cluster", "coordinator"),
    RankAt: _by("cluster", "coordinator"),
    MeasureSum: _by("cluster", "coordinator"),
    Restart: _by("cluster", "coordinator"),
    Retire: _by("cluster", "coordinator"),
    Warm: _by("cluster", "coordinator"),
    Drained: _by("cluster", "coordinator"),
    Expelled: _by("cluster", "coordinator"),
    Reply: _by("cluster", "coordinator"),
    Waiting: _by("cluster", "coordinator"),
    Piece: _by("cluster", "coordinator"),
    Answered: _by("cluster", "coordinator"),
    Declined: _by("cluster", "coordinator"),
}
"""Sockets and roles per kind of message."""

VERBS_OF_ALL: frozenset[Verb] = frozenset({"status", "peers", "leave", "trace", "measure"})
"""Verbs of a ``Call`` that any member may send."""
VERBS_OF_OWNER: frozenset[Verb] = frozenset(get_args(Verb)) - VERBS_OF_ALL
"""Verbs of a ``Call`` that only the coordinator's own machine may send."""


def check_speaker(message: Message, socket: Socket, role: Role) -> None:
    """Check that ``message`` is accepted from ``role`` on ``socket``.

    Raises:
        RemoteProtocolError: The message is not accepted.
    """
    if (socket, role) not in SPEAKERS[type(message)]:
        raise RemoteProtocolError(f"a {type(message).__name__} message of a {role} on a {socket} socket")
