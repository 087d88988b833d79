"""The likeliest tokens of rows of logits, for requests that need no other tokens; parts of a vocabulary are merged.

Candidates of R rows are one float32 array (R, 1 + 2 * K): for each row the log-sum-exp of its logits, the K largest
logits in falling order, equal ones by token id, and the K token ids, each stored as the 32 bits of an int32. Where
there are fewer than K tokens, the remaining logits are minus infinity.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from edgepp.errors import StageFault
from edgepp.model.weights.checkpoint import Array

NOT_FINITE = "logits that are not numbers or infinite"
"""End of the sentence "the stage returned …"."""


def width_of(count: int) -> int:
    """Number of columns of an array with ``count`` candidates per row."""
    return 1 + 2 * count


def candidates_of(logits: Array, first: int, count: int) -> Array:
    """Candidates, float32 (R, 1 + 2 * count), of float32 ``logits`` (R, V) of the V token ids from ``first`` on.

    If the largest logit of a row is NaN or infinite, it is the only logit among the candidates of the row.
    """
    found = _empty(len(logits), count)
    for row, out in zip(logits, found, strict=True):
        top = row.max()  # NaN where any is
        if not np.isfinite(top):
            out[1] = top
            continue
        ids = likeliest(row, count)
        out[0] = log_sum_exp(row)
        _write(out, row[ids], ids + first, count)
    return found


def likeliest(logits: Array, count: int) -> npt.NDArray[np.int64]:
    """Ids of the ``count`` largest of ``logits`` (V,), which hold no NaN, largest first and equal ones by id."""
    if count == 1:
        return np.array([logits.argmax()])
    few = min(count, len(logits))
    if not few:
        return np.empty(0, np.int64)
    # All tokens with the last of these logits or a larger one: ``argpartition`` takes any of equal tokens.
    ids = np.flatnonzero(logits >= np.partition(logits, len(logits) - few)[len(logits) - few])
    return ids[np.lexsort((ids, -logits[ids]))[:few]]


def log_sum_exp(logits: Array) -> np.float32:
    """Logarithm of the sum of the exponentials of float32 ``logits`` (V,), of which the largest is finite."""
    top = logits.max()
    with np.errstate(over="ignore"):  # logits as far apart as floats can be
        found: np.float32 = top + np.log(np.exp(logits - top).sum())
    return found


def merged(parts: Sequence[Array], count: int) -> Array:
    """Candidates of whole rows, float32 (R, 1 + 2 * count), merged from those of all parts of the vocabulary.

    ``parts`` are arrays of the same shape, in the order of their token ids.
    """
    found = _empty(len(parts[0]), count)
    for row, out in enumerate(found):
        sums = np.array([part[row, 0] for part in parts], np.float64)
        values = np.concatenate([part[row, 1 : 1 + count] for part in parts])
        ids = np.concatenate([_ids(part[row], count) for part in parts])
        top = values.max()
        if not np.isfinite(top):
            out[1] = top
            continue
        out[0] = top + np.log(np.exp(sums - top).sum())
        order = np.lexsort((ids, -values))[:count]
        _write(out, values[order], ids[order], count)
    return found


def _empty(rows: int, count: int) -> Array:
    found = np.full((rows, width_of(count)), -np.inf, np.float32)
    found[:, 1 + count :] = 0
    return found


def _write(out: Array, values: Array, ids: Array, count: int) -> None:
    """Write at most ``count`` ``values``, largest first, and their ``ids``."""
    out[1 : 1 + len(values)] = values
    _ids(out, count)[: len(ids)] = ids


def _ids(row: Array, count: int) -> Array:
    """The token ids of a row, as int32 in the same memory."""
    return row[1 + count :].view(np.int32)


class CandidateRow:
    """The likeliest of V tokens; implements ``RowLogits`` for callers that need only the largest logits."""

    def __init__(self, row: Array, vocabulary: int, source: object) -> None:
        """``row`` (1 + 2 * K,) is one row of candidates, and ``vocabulary`` the number V of token ids.

        Errors name ``source``, the stage that computed the row.

        Raises:
            StageFault: the largest logit is not finite, or the row is none that ``candidates_of`` gives.
        """
        self._vocabulary = vocabulary
        count = (len(row) - 1) // 2
        self._log_sum_exp, self._logits = row[0], row[1 : 1 + count]
        self._ids = _ids(row, count)
        if fault := _fault(row[: 1 + count].tolist(), self._ids.tolist(), vocabulary):
            raise StageFault(f"{source} returned {fault}")

    def __len__(self) -> int:
        return self._vocabulary

    def __array__(self, _dtype: object = None, _copy: bool | None = None) -> Array:
        raise TypeError("candidates are not all logits of a row")

    def max(self) -> float:
        """The largest logit."""
        return float(self._logits[0])

    def argmax(self) -> int:
        """Id of the first of the largest logits."""
        return int(self._ids[0])

    def top_logprobs(self, count: int) -> tuple[tuple[int, float], ...]:
        """Pairs of a token id and its log-probability, likeliest first, of at most ``count`` candidates."""
        with np.errstate(over="ignore"):
            pairs = zip(self._ids[:count], self._logits[:count] - self._log_sum_exp, strict=True)
        return tuple((int(id_), float(logprob)) for id_, logprob in pairs if logprob > -np.inf)


def _fault(numbers: Sequence[float], ids: Sequence[int], vocabulary: int) -> str:
    """What is wrong with a row of candidates: its log-sum-exp and logits, and their token ids; empty for nothing."""
    log_sum_exp, largest, *_ = numbers
    if not math.isfinite(largest):
        return NOT_FINITE
    if not 0 <= min(ids) <= max(ids) < vocabulary:
        return f"a token id that is not below {vocabulary}"
    tokens = [token for token, logit in zip(ids, numbers[1:], strict=True) if logit > -math.inf]
    falling = all(before >= after for before, after in pairwise(numbers))  # a NaN is neither
    sound = falling and math.isfinite(log_sum_exp) and len(set(tokens)) == len(tokens)
    return "" if sound else "candidates that contradict one another"
