"""The model's two ends, with what goes in and what comes out checked for each request by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from edgepp.backend.base import EmbeddingAndHead
from edgepp.errors import EdgeppError, StageFault, UsageError
from edgepp.model.weights.checkpoint import Array

Rows: TypeAlias = "Array | BaseException"
"""What was computed for one request, or why it was not."""


def finite(hidden: Array) -> bool:
    """Whether hidden states are all numbers: neither NaN nor infinite."""
    return bool(np.isfinite(hidden).all())


def token_ids(tokens: Sequence[Any], vocabulary: int) -> list[int]:
    """``tokens`` as plain ints, each of which has a row in an embedding of ``vocabulary`` rows.

    Raises:
        UsageError: one of them is no whole number, or has no row.
    """
    for at, token in enumerate(tokens):
        if isinstance(token, bool | np.bool_) or not isinstance(token, int | np.integer):
            raise UsageError(f"token {at} of the prompt is {token!r:.40}, which is no token id")
        if not 0 <= token < vocabulary:
            raise UsageError(
                f"token {at} of the prompt has the id {token}, and the model has rows for 0 to {vocabulary - 1}",
                "the tokenizer has tokens that the model was not made for: leave them out of the text",
            )
    return [int(token) for token in tokens]


class GuardedEnds:
    """``EmbeddingAndHead`` whose trouble with one request stays that request's."""

    def __init__(self, ends: EmbeddingAndHead) -> None:
        self._ends = ends
        self.vocabulary = ends.vocabulary

    def embed(self, tokens: Sequence[int], position: int) -> Array:
        """Hidden states (T, D) of tokens at ``position`` and behind it.

        Raises:
            StageFault: the embedding of one of them is not finite.
            EdgeppError: what else the backend says.
        """
        hidden = self._ends.embed(tokens, position)
        if not finite(hidden):
            bad = int((~np.isfinite(hidden).all(axis=1)).argmax())
            raise StageFault(
                f"the embedding of token {tokens[bad]} is not a number or infinite", "the model's file may be damaged"
            )
        return hidden

    def embed_each(self, tokens: Sequence[int], positions: Sequence[int]) -> list[Rows]:
        """For each of some requests the hidden state (1, D) of its token at its position."""
        if not self._ends.positional:
            try:
                hidden = self.embed(tokens, 0)
                return [hidden[row : row + 1] for row in range(len(tokens))]
            except BaseException as error:  # noqa: BLE001 - the boundary: each is tried by itself
                if len(tokens) == 1:
                    return [error]
        return [self._caught(token, position) for token, position in zip(tokens, positions, strict=True)]

    def _caught(self, token: int, position: int) -> Rows:
        try:
            return self.embed([token], position)
        except BaseException as error:  # noqa: BLE001 - the boundary of one request
            return error

    def logits(self, hidden: Array, parts: Sequence[slice], source: object) -> list[Rows]:
        """For each of some requests the logits of its rows of ``hidden`` (T, D), which come from ``source``."""
        sound = [finite(hidden[part]) for part in parts]
        fault = f"{source} returned hidden states that are not numbers or infinite"
        try:
            logits = self._logits(hidden) if any(sound) else hidden
            return [logits[part] if good else StageFault(fault) for part, good in zip(parts, sound, strict=True)]
        except BaseException as error:  # noqa: BLE001 - the boundary: each is tried by itself
            if len(parts) == 1:
                return [error]
        return [self.logits(hidden[part], [slice(None)], source)[0] for part in parts]

    def _logits(self, hidden: Array) -> Array:
        logits = self._ends.logits(hidden)
        if logits.shape != (len(hidden), self.vocabulary):
            raise EdgeppError(f"the output head gave {logits.shape} logits, and not {len(hidden), self.vocabulary}")
        return logits
