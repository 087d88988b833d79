"""The check of hidden states agrees with numpy for every number of 16 bits, in any place."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from edgepp.stage_process.finite_check import all_finite


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_every_number_of_16_bits(dtype: Any) -> None:
    numbers = np.arange(1 << 16, dtype=np.uint16).view(dtype)
    expected = np.isfinite(numbers.astype(np.float32))
    assert [all_finite(numbers[n : n + 1]) for n in range(len(numbers))] == expected.tolist()
    assert all_finite(numbers[expected].reshape(2, -1))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_one_wrong_number_among_many(dtype: Any, wrong: float) -> None:
    hidden = np.linspace(-9, 9, 60).astype(dtype).reshape(4, 15)
    assert all_finite(hidden)
    assert all_finite(hidden[:0])
    hidden[2, 7] = wrong
    assert not all_finite(hidden)
    assert all_finite(hidden[3:])
