"""Messages on the control socket of a stage by which sequences outlive a lost or replaced stage.

The coordinator asks what each stage holds, and orders the stages to send one another what a stage lacks: hidden states,
from which the stage computes its keys and values again, or the keys and values themselves.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from edgepp.wire.field_types import (
    Addresses,
    Count,
    HeldKind,
    Id,
    KvSource,
    Layer,
    LinkKey,
    PerSequence,
    Stage,
)


class Held(NamedTuple):
    """Stage to coordinator, before ``Attached`` or in reply to ``Inventory``: what the stage holds of the epoch.

    ``positions[i]`` positions from 0 on of ``sequences[i]``: keys and values of the layers ``[start, stop)``, hidden
    states that the stage has logged, or copies of the layers ``[start, stop)`` that it keeps for another stage. Several
    messages where there are more sequences than fit into one.
    """

    epoch: Id
    """Of ``Attached``, the new epoch."""
    what: HeldKind
    start: Layer
    stop: Layer
    sequences: PerSequence
    positions: PerSequence

    def problem(self) -> str:
        """End of the sentence "the message …" for fields that do not fit together; empty for a valid message."""
        if self.start >= self.stop:
            return "has an empty layer range"
        matched = len(self.positions) == len(self.sequences) == len(set(self.sequences))
        return "" if matched else "has sequences and positions that do not match"


class Inventory(NamedTuple):
    """Coordinator to stage: tell by ``Held`` what the stage holds of the epoch; no reply where it holds nothing."""

    epoch: Id


class Replay(NamedTuple):
    """Coordinator to stage: send the logged hidden states of positions ``[start, stop)`` to the next stage again.

    The last stage that computes them is number ``until``, which replies with ``Rebuilt`` for each frame.
    """

    epoch: Id
    sequence: Id
    capacity: Count
    """``Forward.capacity`` of the frames."""
    start: Count
    stop: Count
    until: Stage
    source: Id = 0
    """``Forward.source`` of the first frame: the sequence whose first ``start`` positions are copied; 0 for none."""

    def problem(self) -> str:
        """End of the sentence "the message …" for fields that do not fit together; empty for a valid message."""
        if self.source and not self.start:
            return "copies nothing of another sequence"
        return "" if self.start < self.stop <= self.capacity else "has an impossible range of positions"


class Expect(NamedTuple):
    """Coordinator to stage: accept the keys and values of a sequence from the stage with the key ``key``.

    ``Rebuilt`` follows when all layers of the stage have arrived up to position ``length``. A second ``Expect`` of the
    same sequence and length admits a second sender.
    """

    epoch: Id
    sequence: Id
    capacity: Count
    length: Count
    key: LinkKey

    def problem(self) -> str:
        """End of the sentence "the message …" for fields that do not fit together; empty for a valid message."""
        return "" if 0 < self.length <= self.capacity else "has an impossible length"


class Rebuilt(NamedTuple):
    """Stage to coordinator: the keys and values of the sequence hold ``length`` positions again.

    Sent for every frame that ends at a stage before the last or was made by a ``Replay``, and when a sequence of an
    ``Expect`` is complete.
    """

    epoch: Id
    sequence: Id
    length: Count


class Push(NamedTuple):
    """Coordinator to stage: send keys and values of a sequence to the data socket of another stage.

    Those of the layers ``[start_layer, stop_layer)`` and at least of the positions ``[start, stop)``, from the stage's
    own caches or from the copies that it keeps.
    """

    epoch: Id
    sequence: Id
    what: KvSource
    start_layer: Layer
    stop_layer: Layer
    start: Count
    stop: Count
    addresses: Addresses
    """Addresses of the other stage's data socket, of which the first to answer is used."""
    key: LinkKey
    to_epoch: Id
    """Epoch by which the other stage knows the sequence."""

    def problem(self) -> str:
        """End of the sentence "the message …" for fields that do not fit together; empty for a valid message."""
        if self.start_layer >= self.stop_layer or self.start >= self.stop:
            return "has an empty range of layers or positions"
        return "" if self.addresses else "has no address to send to"


RecoveryMessage: TypeAlias = Held | Inventory | Replay | Expect | Rebuilt | Push
