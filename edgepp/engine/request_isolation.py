"""Embedding and head with their inputs and outputs checked, so that one request's fault stays with that request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from edgepp.backend.base import EmbeddingAndHead
from edgepp.errors import EdgeppError, StageFault, UsageError
from edgepp.model.weights.checkpoint import Array
from edgepp.stage_process.finite_check import all_finite

Rows: TypeAlias = "Array | BaseException"
"""The rows computed for one request, or the error that prevented them."""


def token_ids(tokens: Sequence[Any], vocabulary: int) -> list[int]:
    """``tokens`` as plain ints, each below ``vocabulary``.

    Raises:
        UsageError: a token is not a whole number, or has no row in the embedding.
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
    """``EmbeddingAndHead`` that fail for one request at a time."""

    def __init__(self, ends: EmbeddingAndHead) -> None:
        self._ends = ends
        self.vocabulary = ends.vocabulary

    def embed(self, tokens: Sequence[int], position: int) -> Array:
        """Hidden states (T, D) of T tokens, the first at ``position``.

        Raises:
            StageFault: the embedding of a token is not finite.
            EdgeppError: the backend failed.
        """
        hidden = self._ends.embed(tokens, position)
        if not all_finite(hidden):
            bad = int((~np.isfinite(hidden).all(axis=1)).argmax())
            raise StageFault(
                f"the embedding of token {tokens[bad]} is not a number or infinite", "the model's file may be damaged"
            )
        return hidden

    def embed_each(self, tokens: Sequence[int], positions: Sequence[int]) -> list[Rows]:
        """The hidden state (1, D) of each request's token at its position, or the error of that request."""
        if not self._ends.positional:
            try:
                hidden = self.embed(tokens, 0)
                return [hidden[row : row + 1] for row in range(len(tokens))]
            except BaseException as error:  # noqa: BLE001 - the boundary: each request is tried alone
                if len(tokens) == 1:
                    return [error]
        return [self._embed_one(token, position) for token, position in zip(tokens, positions, strict=True)]

    def _embed_one(self, token: int, position: int) -> Rows:
        try:
            return self.embed([token], position)
        except BaseException as error:  # noqa: BLE001 - the boundary of one request
            return error

    def logits(self, hidden: Array, parts: Sequence[slice], source: object) -> list[Rows]:
        """The logits of each request's rows of ``hidden`` (T, D), or the error of that request.

        ``parts`` holds the rows of each request; errors name ``source``, the stage that computed ``hidden``.
        """
        sound = [all_finite(hidden[part]) for part in parts]
        fault = f"{source} returned hidden states that are not numbers or infinite"
        try:
            logits = self._logits(hidden) if any(sound) else hidden
            return [logits[part] if good else StageFault(fault) for part, good in zip(parts, sound, strict=True)]
        except BaseException as error:  # noqa: BLE001 - the boundary: each request is tried alone
            if len(parts) == 1:
                return [error]
        return [self.logits(hidden[part], [slice(None)], source)[0] for part in parts]

    def _logits(self, hidden: Array) -> Array:
        logits = self._ends.logits(hidden)
        if logits.shape != (len(hidden), self.vocabulary):
            raise EdgeppError(f"the output head gave {logits.shape} logits, and not {len(hidden), self.vocabulary}")
        return logits
