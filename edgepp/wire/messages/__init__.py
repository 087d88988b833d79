"""The protocol of edgepp, version 14: every message, its sender and its receiver.

A message is a ZeroMQ multipart message. The first frame is a msgpack header ``[version, kind, field, …]``, with the
fields in the order in which the classes of this package declare them; the annotations of the fields (``field_types``)
bound their values. ``message_codec`` encodes and decodes headers, and rejects whatever a class does not declare. No
pickle, nested object or code is ever decoded. ``permissions`` says which role may send a message on which socket.
Each module of the package has the messages of one socket and purpose, which its name says.

Frames after the header: ``Forward``, ``Hidden`` and ``Batch`` carry the tensor frames of their codec, ``StepOrder``,
``Partial`` and ``HeadPart`` one frame of raw numbers, ``KvPiece`` one frame of keys and values, ``Echo`` one frame of
arbitrary bytes, ``View``, ``Call``, ``Reply``, ``Ask`` and ``Answered`` one frame of JSON, ``Piece`` one frame of UTF-8
text. All other messages have no further frame.

A stage binds two ROUTER sockets. Whoever sends to a stage connects to it with a DEALER socket.

    control   coordinator ──► stage     one DEALER per stage; ``control``, ``recovery``
        Hello        ► Welcome           identity of the stage: model, layer range, shapes, speed
        Attach       ► Attached          join the ring of an epoch: the previous stage's key, the next stage's address
                     ► Unreached         in place of Attached: the next stage cannot be reached from this one
                     ◄ Held…             before Attached: what the stage holds of the epoch that the ring replaces
        Ping         ► Pong              liveness; a stage forgets a coordinator that is silent for 10 s
        Free, Detach                     cancel one sequence; forget an epoch with all of its sequences (no reply)
        Void                             stop computing, and drop, frames that carried wrong guesses (no reply)
                     ◄ Fault             a step or an order failed, and the stage has freed the sequence
                     ◄ FrameLost         a frame of the previous stage did not arrive
        Inventory    ► Held…             what the stage holds of the epoch
        Replay       ► Rebuilt|Fault     send hidden states of a sequence again, for stages that have lost the sequence
        Expect       ► Rebuilt|Fault     accept the keys and values of a sequence from another stage
        Push         ► Fault             send keys and values of a sequence to another stage (no reply where that works)
                     ► Refused           in place of any of these replies: the reason

    data      coordinator ──► stage 0 ──► stage 1 ──► … ──► stage N-1 ──► coordinator; ``data``
        Echo         ► Echo              round-trip time and rate of a link, and whether what was sent before has
                                         arrived; sent by the side that connected
        Forward      ► Forward           hidden states of T positions of one sequence, from stage to stage
                     ► Hidden            result of a Forward, from the last stage over the coordinator's connection:
                                         hidden states, or from a stage with the output head logits or candidates
        Batch        ► Batch             hidden states of one position each of several sequences, from stage to stage;
                                         the last stage returns a Batch to the coordinator
        KvPiece                          keys and values of a sequence, from any stage of the ring to any other
        Kept         ► Kept              what the stage that keeps copies for the sender has of a sequence

The data ring is one-way and in order. The coordinator numbers the sequences and never reuses a number within an epoch.
``Forward.position`` is the position of the first row: a stage that holds more positions truncates the sequence to that
position first; a stage that holds fewer positions replies with ``Fault``. A ``Forward`` with position 0, or with a
``source`` sequence to copy from, opens a sequence. A stage removes a row of a ``Batch`` that cannot be computed and
runs the other rows. A stage drops and counts a frame of an unknown epoch or sequence, or from another sender than the
previous stage of the epoch; after a cancelled sequence such frames are normal.

A ``Forward`` or ``Batch`` row voids every earlier frame of its sequence at its position or a later one: the coordinator
guessed these tokens, and drew another. A stage that has not computed a void frame yet neither computes it nor sends it
on, and the coordinator ignores the result if there is one. ``Void`` tells all stages at once, so that a stage stops the
void frame that it computes, if it can. Frames that rebuild what was lost neither void nor are void.

Each sender numbers the frames ``Forward``, ``Batch`` and ``Hidden`` of an epoch on its link from 0 (``serial``). A
stage that sees a gap sends ``FrameLost`` and computes the frame; it drops and counts a frame whose number is not new.
The coordinator gives the ring up at a gap, and at an answer to a step of a sequence whose earlier step has none.

Frames of traced requests carry the times at which each stage handled them (``wire.frame_marks``), and its ranks
(``wire.rank_marks``); ``Ping`` and ``Pong``
carry the times that show how the clocks of coordinator and stages differ.

A ring can replace another one that has lost a stage. Its new epoch ``inherits`` the old one: a stage that was part of
both keeps its sequences, its log and its copies, and reports them with ``Held``. Each stage but the last logs the
hidden states that it sent on. ``Replay`` sends the log again, up to the stage ``until``, which does not send its result
on and answers ``Rebuilt``. Keys and values themselves go by ``KvPiece``: to the stage that keeps copies for the sender,
which says by ``Kept`` what it has, or, after ``Expect`` and ``Push``, to the stage that restores a sequence.

The ranks of a tensor-parallel stage are processes that each bind one ROUTER socket and connect to all others. Rank 0
is the stage for the coordinator and for other stages; it has the others do what it does.

    ranks     rank ──► rank             one DEALER per pair and direction; ``ranks``
        RankJoined                       first message of a connection: which rank of which stage the sender is
        CacheOrder   ► CacheDone         from rank 0: open, fork or resize a sequence, or set its length; truncate and
                                         free have no reply
        KvOrder      ► KvExported        from rank 0: export keys and values; to import them has no reply
        StepOrder                        from rank 0: compute hidden states, with all other ranks
        Partial                          from each rank to all others, twice per layer: a partial sum, which every
                                         rank adds in the order of the ranks
        RankTimings                      to rank 0, before the last Partial of a step of a traced request: when the rank
                                         computed its halves, and waited in sums
        HeadPart                         to rank 0, from a rank that has its part of the output head: the last rows'
                                         logits or candidates, behind the last Partial
        RankFault                        in place of the next Partial: the rank cannot do the step

A process that drafts for a cluster, or for the coordinator's own machine, binds one ROUTER socket.

    draft     coordinator ──► drafter   one DEALER; ``drafts``
        Hello        ► Drafter|Refused   identity of the small model: its tokens, context, speed
        Read         ► Guessed…|Unread   the text of a request; guesses of what follows, as they are made
        Forget                           the request has ended (no reply)

The coordinator of a cluster binds one ROUTER socket, encrypted by CURVE, for nodes and clients.

    cluster   node ──► coordinator      one DEALER per node; ``nodes``, ``rank_meetings``
        Enrol        ► Enrolled|Refused  name and resources; sent again when the resources or addresses change
        Heartbeat    ► HeartbeatAck      twice per second; the acknowledgement of an unknown node makes it enrol again
                     ◄ View              state of the cluster, sent when it changes
                     ◄ Load, Unload      run a layer range, or a drafting process, in a stage slot; empty a slot
        Loading, Loaded, NotLoaded       progress and result of a Load; NotLoaded also when a stage process ended
        RankListens  ► RankAt…           the Load of a rank: where it listens, and where the other ranks do, on their
                                         own nodes, once all of them listen
                     ◄ MeasureSum        to two nodes, which connect as ranks do: measure a sum over both
        SumMeasured                      its result, from rank 0
                     ◄ Restart, Retire   end a stage process that hangs, and start the stage again; end the stage
                                         process that stayed when its slot got another layer range
                     ◄ Warm              fetch layers that the node may run later, and read them once
        Leaving      ► Drained           move the node's layers to the others, before Leave
        Leave        ◄ Expelled          the node leaves, also as reply to Expelled; key revoked, or the cluster ends
        Adopt        ► Enrolled|Refused  the holder of a token asks the coordinator to admit the holder's own key

              client ──► coordinator    one DEALER per chat or command; ``clients``
        Call         ► Reply             status, peers, leave, trace, measure; on the coordinator's machine: invite,
                                         token, revoke, use, drain
        Ask          ► Piece…, Answered  a prompt: text as it is generated, then times and stages
                     ► Waiting           every second until the first Piece, with the reason
                     ► Declined          in place of any of these replies: the reason and what to do
        Cancel                           stop an answer (no reply)
"""

from __future__ import annotations

from typing import TypeAlias

from edgepp.wire.field_types import MAX_SEQUENCES, MAX_TOKENS
from edgepp.wire.messages.clients import ClientMessage
from edgepp.wire.messages.control import ControlMessage
from edgepp.wire.messages.data import DataMessage
from edgepp.wire.messages.drafts import DraftMessage
from edgepp.wire.messages.nodes import NodeMessage
from edgepp.wire.messages.ranks import RankMessage
from edgepp.wire.messages.recovery import RecoveryMessage

VERSION = 14
MAX_FRAMES = 4
"""Frames of one message, header included."""
MAX_HEADER_BYTES = 4096
MAX_CONTROL_FRAME_BYTES = 1 << 16
"""Longest frame on a control socket."""
MAX_PAYLOAD_BYTES = 4 << 20
"""Longest frame on a cluster socket: a conversation of some million characters."""

Message: TypeAlias = (
    ControlMessage | RecoveryMessage | DataMessage | RankMessage | DraftMessage | NodeMessage | ClientMessage
)


def max_data_frame_bytes(width: int) -> int:
    """Longest frame, in bytes, on a data socket for hidden states of ``width`` values."""
    return MAX_TOKENS * width * 4


def max_result_frame_bytes(width: int, vocabulary: int) -> int:
    """Longest frame, in bytes, of results from a stage that has the output head for ``vocabulary`` tokens."""
    return max(max_data_frame_bytes(width), MAX_SEQUENCES * vocabulary * 4)
