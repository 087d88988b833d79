"""Headers, tensor frames and the JSON of the wire."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from random import Random
from typing import get_args

import msgpack
import numpy as np

from edgepp.coordinator.json_codec import (
    AnswerSummary,
    decode_question,
    decode_stages,
    decode_summary,
    encode_question,
    encode_summary,
)
from edgepp.errors import RemoteProtocolError, UsageError
from edgepp.tracing.request_trace import RequestTrace, StepTrace, TracedRing, TracedStage
from edgepp.tracing.trace_view import RANK_TRACK, view
from edgepp.wire import codec
from edgepp.wire.field_types import Dtype
from edgepp.wire.message_codec import decode, decode_payload, encode
from edgepp.wire.rank_marks import packed_times, with_ranks
from tests.ceiling import ceiling
from tests.fuzz.message_lists import mutated_header
from tests.fuzz.mutation import mutated_json
from tests.fuzz.target import Target, check_sentence, examples
from tests.unit.coordinator.test_json_codec import AGENT, HELD, OPTIONS, OUTCOME
from tests.wire import messages

_WIDTHS = (1, 2, 7, 8, 576, 4096)
_DTYPES: tuple[Dtype, ...] = get_args(Dtype)


def check_header(raw: bytes) -> None:
    """A header is refused in a short sentence, or is a message that encodes to an equal one."""
    with ceiling():
        try:
            message = decode(raw)
        except RemoteProtocolError as error:
            check_sentence(error)
            return
    again = decode(encode(message))
    assert type(again) is type(message)
    assert again == message


def _headers() -> Iterator[bytes]:
    yield from (encode(message) for message in examples(messages(), 200))
    yield msgpack.packb([])


def check_tensor(raw: bytes) -> None:
    """Tensor frames are refused, or are an array of the size that was asked for, which encodes and decodes again.

    The first four bytes choose codec, dtype, rows and width; the fifth where a second frame begins, if there is one.
    """
    head, rest = raw[:5].ljust(5, b"\0"), raw[5:]
    name, dtype = codec.NAMES[head[0] % len(codec.NAMES)], _DTYPES[head[1] % len(_DTYPES)]
    rows, width = head[2], _WIDTHS[head[3] % len(_WIDTHS)]
    frames = [rest] if name != "int8" else [rest[: 4 * head[4]], rest[4 * head[4] :]]
    with ceiling():
        try:
            hidden = codec.decode(frames if rest else [], rows, width, dtype, name)
        except RemoteProtocolError as error:
            check_sentence(error)
            return
        assert hidden.shape == (rows, width)
        assert codec.dtype_name(hidden.dtype) == dtype
        if name != "int8":
            again = codec.decode(codec.encode(hidden, name), rows, width, dtype, name)
            assert again.tobytes() == hidden.tobytes()


def _tensors() -> Iterator[bytes]:
    draw = np.random.default_rng(1)
    for number, name in enumerate(codec.NAMES):
        for dtype in range(len(_DTYPES)):
            for rows, width in ((1, 3), (3, 2), (5, 1)):
                hidden = draw.standard_normal((rows, _WIDTHS[width])).astype(codec.DTYPES[_DTYPES[dtype]])
                frames = [bytes(frame) for frame in codec.encode(hidden, name)]
                yield bytes((number, dtype, rows, width, rows)) + b"".join(frames)


def _mutated_tensor(raw: bytes, draw: Random) -> bytes:
    changed = bytearray(raw)
    if len(changed) > 5:
        changed[draw.randrange(len(changed)) if draw.random() < 0.5 else draw.randrange(5)] = draw.randrange(256)
    return bytes(changed)


def check_ranks(raw: bytes) -> None:
    """Times of ranks are read as far as they are sound, and no span leaves the trip of its frame."""
    ring = TracedRing((TracedStage("a", "0-1", 1), TracedStage("b", "2-3", 2)), (None, None))
    step = StepTrace("decode", 1, 1, 1.0, 1.1, 1.2, received_s=1.8, back_s=1.9, ring=ring, rank_marks=raw)
    trace = RequestTrace("req_1", 0.0, steps=[step])
    with ceiling():
        spans = [span for span in view(trace).spans if span.track == RANK_TRACK]
    assert len(spans) <= len(raw) // 2
    assert all(1_200_000 <= one.begin_us <= one.begin_us + one.took_us <= 1_800_000 for one in spans)


def _ranks() -> Iterator[bytes]:
    for ranks in (1, 2, 3):
        times = [packed_times(range(1_300_000_000 + rank, 1_500_000_000, 20_000_000)) for rank in range(ranks)]
        yield with_ranks(with_ranks(b"", 0, times, 1), 1, times, 1)
    yield with_ranks(b"", 0, [packed_times([5, 10**14])] * 2, 1)


def check_json(raw: bytes) -> None:
    """A question, a summary or stages are refused by a typed error, or encode to equal ones."""
    kind, payload = raw[:1], raw[1:]
    with ceiling():
        try:
            fields = decode_payload([b"", payload])
            match kind:
                case b"q":
                    prompt, options = decode_question(fields)
                case b"s":
                    summary = decode_summary(fields)
                case _:
                    decode_stages(fields)
                    return
        except (RemoteProtocolError, UsageError) as error:
            check_sentence(error, 2000)
            return
        if kind == b"q":
            assert decode_question(json.loads(json.dumps(encode_question(prompt, options)))) == (prompt, options)
        elif not _holds_nan(summary):
            assert decode_summary(json.loads(json.dumps(encode_summary(summary)))) == summary


def _holds_nan(summary: AnswerSummary) -> bool:
    """Whether a number does not equal itself: Python's JSON knows NaN."""
    return "nan" in repr(asdict(summary))


def _payloads() -> Iterator[bytes]:
    for prompt in ("raw text", AGENT, (3, 5)):
        for options in (OPTIONS, HELD):
            yield b"q" + json.dumps(encode_question(prompt, options)).encode()
    summary = encode_summary(OUTCOME)
    yield b"s" + json.dumps(summary).encode()
    yield b"t" + json.dumps({"stages": summary["stages"]}).encode()


def _mutated_payload(raw: bytes, draw: Random) -> bytes:
    return raw[:1] + (mutated_json(raw[1:], draw) or raw[1:])


TARGETS = (
    Target("wire", check_header, _headers, mutated_header),
    Target("tensors", check_tensor, _tensors, _mutated_tensor),
    Target("rank-times", check_ranks, _ranks, _mutated_tensor),
    Target("wire-json", check_json, _payloads, _mutated_payload),
)
