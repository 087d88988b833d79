"""A small model that guesses tokens for a large one: loaded whole on the coordinator, one sequence at a time."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from edgepp.backend.base import EmbeddingAndHead, StageModel
from edgepp.model.weights.checkpoint import Array


class DraftModel:
    """A loaded small model, shared by all requests. Belongs to one thread."""

    def __init__(self, stage: StageModel, ends: EmbeddingAndHead, context: int, vocabulary: int) -> None:
        """``context`` is the most positions of the small model, ``vocabulary`` the large model's number of tokens."""
        self.stage, self.ends = stage, ends
        self.context, self.vocabulary = context, vocabulary
        self.sequences = itertools.count(1)

    def begin(self) -> ModelDraft:
        """A draft for one request."""
        return ModelDraft(self)


class ModelDraft:
    """Guesses the small model's likeliest tokens for one request, whose text the small model reads along."""

    def __init__(self, model: DraftModel) -> None:
        self._model = model
        self._sequence = 0
        self._ids: list[int] = []
        """Token ids whose keys and values the small model holds."""

    def propose(self, ids: Sequence[int], max_guesses: int) -> Sequence[int]:
        """At most ``max_guesses`` tokens that may follow ``ids``; none until the small model has read all of ``ids``.

        A call reads at most one chunk, so that no other request waits for long.
        """
        model = self._model
        if len(ids) + max_guesses > model.context:
            return ()
        self._rewind(ids)
        unread = ids[len(self._ids) :]
        behind = len(unread) > model.stage.chunk
        hidden = self._read(unread[: model.stage.chunk])
        if behind:
            return ()
        guesses: list[int] = []
        while len(guesses) < max_guesses:
            logits = model.ends.logits(hidden[-1:])[0, : model.vocabulary]
            guesses.append(int(logits.argmax()))
            if len(guesses) < max_guesses:
                hidden = self._read(guesses[-1:])
        return guesses

    def close(self) -> None:
        """Release the small model's sequence; the request has ended."""
        if self._sequence:
            self._model.stage.free(self._sequence)
            self._sequence = 0

    def _rewind(self, ids: Sequence[int]) -> None:
        """Truncate the sequence to its common prefix with ``ids``; the last of ``ids`` is always read again."""
        if not self._sequence:
            self._sequence = next(self._model.sequences)
            self._model.stage.open(self._sequence, self._model.context)
        right = next((at for at, (a, b) in enumerate(zip(self._ids, ids, strict=False)) if a != b), len(self._ids))
        keep = min(right, len(ids) - 1)
        if keep < len(self._ids):
            self._model.stage.truncate(self._sequence, keep)
            del self._ids[keep:]

    def _read(self, tokens: Sequence[int]) -> Array:
        hidden = self._model.stage.extend(self._sequence, self._model.ends.embed(tokens, len(self._ids)))
        self._ids += tokens
        return hidden
