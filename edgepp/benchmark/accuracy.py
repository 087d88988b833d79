"""Accuracy of a model's arithmetic: logits of a local model over a text, and their difference from a reference."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise, takewhile

import numpy as np
import numpy.typing as npt

from edgepp.backend import choose
from edgepp.backend.base import BackendOptions
from edgepp.layer_range import LayerRange
from edgepp.model.weights.checkpoint import Checkpoint

Logits = npt.NDArray[np.float32]

WINDOW = 512
"""Tokens of a text that are one sequence."""
SLICE = 64
"""Positions per step, whose logits are in memory at the same time."""
_MAX_POSITIONS = 1024


class LocalModel:
    """A whole model in this thread, as one stage or as several, each with a backend of its own."""

    def __init__(
        self, checkpoint: Checkpoint, options: BackendOptions, backends: Sequence[str], cuts: Sequence[int] = ()
    ) -> None:
        """Load the layers; ``cuts`` are the first layers of the second and of later stages, with a backend per stage.

        Raises:
            ModelError: a backend does not support the model or the options.
        """
        edges = (0, *cuts, checkpoint.num_layers)
        self._stages = [
            choose(backend, checkpoint).load_stage(checkpoint, LayerRange(start, stop), options)
            for backend, (start, stop) in zip(backends, pairwise(edges), strict=True)
        ]
        self._ends = choose(backends[0], checkpoint).load_embedding_and_head(checkpoint, options)
        self._context = checkpoint.context
        self.device = self._stages[0].device

    @property
    def kv_bytes(self) -> int:
        """Bytes of the keys and values of the present sequence."""
        return sum(stage.kv_bytes for stage in self._stages)

    def open(self) -> None:
        """Start a new sequence and free the last one."""
        for stage in self._stages:
            stage.free(0)
            stage.open(0, min(self._context, _MAX_POSITIONS))

    def extend(self, tokens: Sequence[int]) -> npt.NDArray[np.generic]:
        """Hidden states (T, hidden) of the last stage after each of the next ``tokens``."""
        hidden = self._ends.embed(tokens)
        for stage in self._stages:
            hidden = stage.extend(0, hidden)
        return hidden

    def logits(self, tokens: Sequence[int]) -> Logits:
        """Logits (T, V) after each of the next ``tokens``."""
        return self._ends.logits(self.extend(tokens))

    def answer(self, prompt: Sequence[int], feed: Sequence[int] | None = None, *, length: int) -> list[int]:
        """Greedy answer of ``length`` tokens; with ``feed``, those tokens follow the prompt instead of the answer."""
        self.open()
        tokens = [int(self.logits(prompt)[-1].argmax())]
        while len(tokens) < length:
            step = tokens if feed is None else feed[: len(tokens)]
            tokens.append(int(self.logits([step[-1]])[-1].argmax()))
        return tokens


class LogitDifference:
    """Sums of the differences between logits and reference logits over the positions of a text."""

    def __init__(self) -> None:
        self._positions = 0
        self._sums = dict.fromkeys(("loss", "kl", "top1", "mean_diff"), 0.0)
        self._max_diff = 0.0

    def add(self, reference: Logits, logits: Logits, following: Sequence[int]) -> None:
        """Add the logits (T, V) of T positions, and the token that follows each."""
        expected, got = log_softmax(reference), log_softmax(logits)
        difference = np.abs(logits - reference)
        self._positions += len(following)
        self._sums["loss"] -= float(got[np.arange(len(following)), following].sum())
        self._sums["kl"] += float((np.exp(expected) * (expected - got)).sum())
        self._sums["top1"] += float((reference.argmax(-1) == logits.argmax(-1)).sum())
        self._sums["mean_diff"] += float(difference.mean(-1).sum())
        self._max_diff = max(self._max_diff, float(difference.max()))

    def result(self) -> dict[str, float]:
        """Means over the positions, and the perplexity."""
        means = {name: total / self._positions for name, total in self._sums.items()}
        return {"perplexity": float(np.exp(means.pop("loss"))), **means, "max_diff": self._max_diff}


def log_softmax(logits: Logits) -> npt.NDArray[np.float64]:
    """Natural logarithms of the probabilities, in float64."""
    shifted: npt.NDArray[np.float64] = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    total: npt.NDArray[np.float64] = np.exp(shifted).sum(-1, keepdims=True)
    return shifted - np.log(total)


def slices(ids: Sequence[int]) -> Iterator[tuple[bool, Sequence[int], Sequence[int]]]:
    """Slices of the text: whether a window begins, the tokens, and the token that follows each."""
    for start in range(0, len(ids) - 1, SLICE):
        stop = min(start + SLICE, len(ids) - 1)
        yield start % WINDOW == 0, ids[start:stop], ids[start + 1 : stop + 1]


def leading(a: Sequence[int], b: Sequence[int]) -> int:
    """Number of tokens before the first difference."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=True)))
