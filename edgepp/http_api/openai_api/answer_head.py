"""The fields that all chunks of an answer repeat: id, time, model."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass
from typing import Any

import msgspec

from edgepp.http_api.model_service import ServedModel

KEEP_ALIVE = b": keepalive\n\n"
"""A comment, which every reader of server-sent events passes over."""
DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True)
class AnswerHead:
    """The fields that begin an answer or each of its chunks."""

    id: str
    created_s: int
    model: str
    fingerprint: str

    def fields(self, kind: str) -> dict[str, Any]:
        """The first fields of an object of the kind ``kind``."""
        return {
            "id": self.id,
            "object": kind,
            "created": self.created_s,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }


def new_head(prefix: str, model: ServedModel, asked: str | None) -> AnswerHead:
    """The head of a new answer of ``model``, which the client called ``asked``."""
    return AnswerHead(f"{prefix}-{uuid.uuid4().hex}", int(time.time()), asked or model.name, f"fp_{model.digest[:12]}")


def frame(body: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + msgspec.json.encode(body) + b"\n\n"
