"""A small model that guesses for a large one: on the coordinator, whole, one sequence at a time."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from edgepp.backend.base import EmbeddingAndHead, StageModel
from edgepp.model.weights.checkpoint import Array


class DraftModel:
    """A loaded model from which requests draw guesses. Belongs to one thread."""

    def __init__(self, stage: StageModel, ends: EmbeddingAndHead, context: int, vocabulary: int) -> None:
        """``context`` is how far it can look, and ``vocabulary`` how many tokens the large model has."""
        self.stage, self.ends = stage, ends
        self.context, self.vocabulary = context, vocabulary
        self.numbers = itertools.count(1)

    def begin(self) -> ModelDraft:
        """What guesses for one request."""
        return ModelDraft(self)


class ModelDraft:
    """See ``Draft``: the likeliest tokens by the small model, which reads along."""

    def __init__(self, model: DraftModel) -> None:
        self._model = model
        self._sequence = 0
        self._ids: list[int] = []
        """What its cache holds."""

    def propose(self, ids: Sequence[int], most: int) -> Sequence[int]:
        """See ``Draft``. A call reads at most one chunk, so that no other request waits; until then: no guesses."""
        model = self._model
        if len(ids) + most > model.context:
            return ()
        self._rewind(ids)
        unread = ids[len(self._ids) :]
        behind = len(unread) > model.stage.chunk
        hidden = self._read(unread[: model.stage.chunk])
        if behind:
            return ()
        guesses: list[int] = []
        while len(guesses) < most:
            logits = model.ends.logits(hidden[-1:])[0, : model.vocabulary]
            guesses.append(int(logits.argmax()))
            if len(guesses) < most:
                hidden = self._read(guesses[-1:])
        return guesses

    def close(self) -> None:
        """See ``Draft``."""
        if self._sequence:
            self._model.stage.free(self._sequence)
            self._sequence = 0

    def _rewind(self, ids: Sequence[int]) -> None:
        """Forget what was guessed wrong; the last of ``ids`` is always read again."""
        if not self._sequence:
            self._sequence = next(self._model.numbers)
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
