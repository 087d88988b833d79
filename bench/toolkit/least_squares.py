"""Least squares whose solution has no negative number."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def nonnegative_least_squares(
    rows: Sequence[Sequence[float]] | npt.NDArray[np.float64], values: Sequence[float] | npt.NDArray[np.float64]
) -> list[float]:
    """Weights of the columns of ``rows`` (M, N) that come closest to ``values`` (M,).

    While a weight is negative, the column of the lowest weight is left out and has the weight 0.
    """
    matrix, target = np.asarray(rows, np.float64), np.asarray(values, np.float64)
    columns = list(range(matrix.shape[1]))
    while True:
        weights = np.linalg.lstsq(matrix[:, columns], target, rcond=None)[0]
        if not columns or weights.min() >= 0:
            break
        del columns[int(weights.argmin())]
    solution = [0.0] * matrix.shape[1]
    for column, weight in zip(columns, weights, strict=True):
        solution[column] = float(weight)
    return solution
