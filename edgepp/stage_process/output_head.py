"""The output head of a last stage: the part of a result that a frame asks for, computed where the layers are."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np

from edgepp.backend.candidates import candidates_of
from edgepp.backend.loader import OutputHead
from edgepp.model.weights.checkpoint import Array
from edgepp.wire.field_types import ResultForm


class WantedResult(NamedTuple):
    """Rows and form of a step's result, as in ``StepOrder``."""

    rows: int = 0
    form: ResultForm = "hidden"
    candidates: int = 0


NO_RESULT = WantedResult()
"""Nothing but the hidden states."""


class StageHead(Protocol):
    """The output head as ``ModelRunner`` uses it: ``expect`` before a step, and ``result`` behind it."""

    def expect(self, wanted: WantedResult) -> None:
        """Say what is ``wanted`` of the next step."""

    def result(self, hidden: Array) -> Array:
        """What was wanted of the last step, which gave ``hidden`` (T, D): float32 logits (R, V), or candidates.

        Raises:
            StageFault: the head failed.
        """


def result_of(head: OutputHead, hidden: Array, wanted: WantedResult, first: int = 0) -> Array:
    """What is ``wanted`` of hidden states (T, D): logits (R, V) of the last R rows, or candidates, both float32.

    ``first`` is the token id of the first logit of ``head``.

    Raises:
        StageFault: the head failed.
    """
    logits = np.asarray(head.logits(hidden[len(hidden) - wanted.rows :]))
    return logits if wanted.form == "logits" else candidates_of(logits, first, wanted.candidates)


class WholeHead:
    """Final norm and output head of a stage of one process; implements ``StageHead``."""

    def __init__(self, head: OutputHead) -> None:
        self._head = head
        self._wanted = NO_RESULT

    def expect(self, wanted: WantedResult) -> None:
        """Say what is ``wanted`` of the next step."""
        self._wanted = wanted

    def result(self, hidden: Array) -> Array:
        """What was wanted of the last step, which gave ``hidden`` (T, D): float32 logits (R, V), or candidates.

        Raises:
            StageFault: the head failed.
        """
        return result_of(self._head, hidden, self._wanted)
