"""Types of the fields of a message: each annotation gives the bounds, or the check, that a received value must pass.

``Annotated[int, low, high]``, ``Annotated[str, min_length, max_length, check]`` (``check`` from ``text_fields``),
``Annotated[tuple[int, ...], min_length, max_length]``, the same with ``bytes``, ``Literal[...]`` and ``bool`` are all
that ``message_codec`` reads; lengths of text count characters.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from edgepp.wire.text_fields import (
    are_addresses,
    are_hosts,
    is_key,
    is_key_or_empty,
    is_label,
    is_name,
    is_route,
    is_text,
)

MAX_TOKENS = 1024
"""Rows of one hidden-state tensor: the longest chunk of a stage process, whatever its backend would like."""
MAX_WIDTH = 1 << 16
"""Columns of one hidden-state tensor: the hidden size D."""
MAX_SEQUENCES = 128
"""Sequences of one ``Batch``."""
MAX_RESULT_WIDTH = 1 << 20
"""Columns of one tensor of results: the size of a vocabulary."""

Id: TypeAlias = Annotated[int, 0, (1 << 63) - 1]
"""Number of an epoch, sequence, step, request, plan version or incarnation; also a wall clock in microseconds."""
Count: TypeAlias = Annotated[int, 0, (1 << 48) - 1]
Rows: TypeAlias = Annotated[int, 0, MAX_TOKENS]
Width: TypeAlias = Annotated[int, 1, MAX_WIDTH]
ResultWidth: TypeAlias = Annotated[int, 1, MAX_RESULT_WIDTH]
Candidates: TypeAlias = Annotated[int, 0, 20]
"""Likeliest tokens of a row; 0 where no candidates are asked for."""
Layer: TypeAlias = Annotated[int, 0, 1 << 16]
Stage: TypeAlias = Annotated[int, 0, 1023]
"""Index of a stage in its pipeline."""
Rank: TypeAlias = Annotated[int, 0, 15]
"""Index of a rank in its tensor-parallel stage."""
Ranks: TypeAlias = Annotated[int, 1, 16]
"""Number of ranks of a stage."""
RankWeights: TypeAlias = Annotated[tuple[int, ...], 0, 16]
"""How the ranks of a stage share each layer, in rank order: see ``model.tensor_shares``. Empty for one process."""
RankPids: TypeAlias = Annotated[tuple[int, ...], 0, 16]
"""Processes of the ranks of a stage, in rank order; empty for one process."""
Slot: TypeAlias = Annotated[int, 0, 63]
"""Index of a stage slot on its node."""
StageSlots: TypeAlias = Annotated[int, 0, 64]
"""Number of stage slots of a node."""
Threads: TypeAlias = Annotated[int, 0, 1 << 16]
Port: TypeAlias = Annotated[int, 1, 65535]
KvBits: TypeAlias = Annotated[int, 0, 8]
Checksum: TypeAlias = Annotated[int, 0, (1 << 32) - 1]

Text: TypeAlias = Annotated[str, 0, 512, is_text]
"""A sentence for people; the receiver makes it printable before showing it."""
Label: TypeAlias = Annotated[str, 0, 512, is_label]
"""Printable text on one line; may be empty."""
Name: TypeAlias = Annotated[str, 1, 128, is_name]
"""Name of a node or cluster."""
Key: TypeAlias = Annotated[str, 40, 40, is_key]
"""Public key of a node, in Z85."""
LinkKey: TypeAlias = Annotated[str, 0, 40, is_key_or_empty]
"""Public key of the node at the other end of a link; empty for a link that is not encrypted."""
Addresses: TypeAlias = Annotated[str, 0, 1024, are_addresses]
"""``HOST:PORT`` and ``[IPV6]:PORT``, separated by commas."""
Hosts: TypeAlias = Annotated[str, 0, 1024, are_hosts]
"""IP addresses, separated by commas."""
Route: TypeAlias = Annotated[str, 2, 510, is_route]
"""Routing id of a connection, in hexadecimal."""

Verb: TypeAlias = Literal["status", "peers", "leave", "invite", "token", "revoke", "use", "drain", "trace", "measure"]
Dtype: TypeAlias = Literal["float32", "float16", "bfloat16"]
Codec: TypeAlias = Literal["none", "lz4", "zstd", "int8"]
ResultForm: TypeAlias = Literal["hidden", "logits", "candidates"]
"""What returns of a step's rows: hidden states; or, from a stage that has the output head, float32 logits (rows, V), or
candidates (rows, 1 + 2 * K) as in ``backend.candidates``."""
LinkCodec: TypeAlias = Literal["auto", "none", "lz4", "zstd", "int8"]
"""``auto``: the sender chooses a lossless codec for each frame."""
HeldKind: TypeAlias = Literal["kv", "log", "copy"]
"""What a stage holds of a sequence: keys and values, logged hidden states, or copies for another stage."""
KvSource: TypeAlias = Literal["kv", "copy"]
"""Where a stage takes the keys and values that it sends: its own caches, or the copies that it keeps."""
CacheOperation: TypeAlias = Literal["open", "truncate", "fork", "resize", "set_length", "free"]
KvTransfer: TypeAlias = Literal["export", "import"]
PiecePurpose: TypeAlias = Literal["copy", "restore"]

PerSequence: TypeAlias = Annotated[tuple[int, ...], 1, MAX_SEQUENCES]
"""One number per sequence of a ``Batch``."""
PerStageMicroseconds: TypeAlias = Annotated[tuple[int, ...], 0, 1024]
"""Compute time of each stage that the frame has passed, in microseconds, without encoding, decoding and queueing."""
TraceTimes: TypeAlias = Annotated[tuple[int, ...], 0, 161]
"""Times of a traced frame (``wire.frame_marks``), for at most 32 stages; empty for a frame that is not traced."""
RankTimes: TypeAlias = Annotated[bytes, 0, 2048]
"""Times of the ranks of stages in a traced step (``wire.rank_marks``); empty where none were noted."""
WeightDigests: TypeAlias = Annotated[tuple[int, ...], 0, 256]
"""As ``model.weights.weight_digests`` gives them: of the tensors outside the layers, then of each layer."""
TokenIds: TypeAlias = Annotated[tuple[int, ...], 0, 256]
