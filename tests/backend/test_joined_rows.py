"""Rows of a micro-batch in one product give the numbers of a product each."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from edgepp.backend.mlx.joined_rows import join_rows


class Model(nn.Module):  # type: ignore[misc]
    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.table, self.inner = nn.Embedding(96, 64), [nn.Linear(64, 32, bias=bias)]
        nn.quantize(self, group_size=32, bits=4)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 1), (2, 3)])
@pytest.mark.parametrize("bias", [True, False])
def test_the_numbers_stay_the_same(shape: tuple[int, int], bias: bool) -> None:
    model: Any = Model(bias)
    x = mx.random.normal((*shape, 64), key=mx.random.key(1))
    ids = mx.arange(shape[0] * shape[1]).reshape(shape)
    expected = [np.asarray(model.inner[0](x)), np.asarray(model.table.as_linear(x)), np.asarray(model.table(ids))]
    join_rows(model)
    for found, wanted in zip((model.inner[0](x), model.table.as_linear(x), model.table(ids)), expected, strict=True):
        np.testing.assert_array_equal(np.asarray(found), wanted)


def test_a_micro_batch_is_one_product(monkeypatch: pytest.MonkeyPatch) -> None:
    model, shapes = Model(True), []
    product = mx.quantized_matmul

    def watched(x: Any, *args: Any, **options: Any) -> Any:
        shapes.append(x.shape)
        return product(x, *args, **options)

    monkeypatch.setattr(mx, "quantized_matmul", watched)
    join_rows(model)
    model.inner[0](mx.zeros((5, 1, 64)))
    model.table.as_linear(mx.zeros((5, 1, 64)))
    assert shapes == [(1, 5, 64), (1, 5, 64)]
