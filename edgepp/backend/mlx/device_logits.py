"""Logits that stay on a GPU; a row is copied only if the host needs more than its largest logit."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import mlx.core as mx
import numpy as np

from edgepp.model.weights.checkpoint import Array


class ComputedLogits:
    """Float32 logits (T, V) on the device, and the largest of each row. The arrays are not evaluated here."""

    def __init__(self, logits: Any) -> None:
        self.logits = logits
        self.tokens = mx.argmax(logits, axis=-1)
        """Id of the first of the largest logits of each row, (T,)."""
        self._largest = logits.max(axis=-1)

    @property
    def arrays(self) -> tuple[Any, ...]:
        """All arrays that the device computes."""
        return self.logits, self.tokens, self._largest

    @cached_property
    def on_host(self) -> tuple[Array, Array]:
        """Ids and values of the largest logit of each row, (T,) each, once the device has them."""
        return np.asarray(self.tokens), np.asarray(self._largest)

    @cached_property
    def copied(self) -> Array:
        """All logits (T, V), copied to the host: an operation on the device would wait for the step ahead."""
        return np.asarray(self.logits)

    def rows(self, rows: range) -> DeviceLogits:
        """The logits of ``rows``."""
        return DeviceLogits(self, rows)


class DeviceLogits:
    """Rows of logits on a device, like an array (T, V)."""

    def __init__(self, computed: ComputedLogits, rows: range) -> None:
        self._computed, self._rows = computed, rows

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of rows and of logits per row."""
        return len(self._rows), self._computed.logits.shape[1]

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[DeviceRow]:
        return (DeviceRow(self._computed, row) for row in self._rows)

    def __getitem__(self, key: Any) -> Any:
        match key:
            case slice():
                return DeviceLogits(self._computed, self._rows[key])
            case int():
                return DeviceRow(self._computed, self._rows[key])
        return np.asarray(self)[key]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        found = self._computed.copied[self._rows.start : self._rows.stop]
        return found if dtype is None else found.astype(dtype, copy=bool(copy))

    def argmax(self, _axis: int) -> Array:
        """Id of the first of the largest logits of each row (T,)."""
        return self._computed.on_host[0][self._rows.start : self._rows.stop].astype(np.int64)


class DeviceRow:
    """Logits (V,) of one row on a device; implements ``RowLogits``."""

    def __init__(self, computed: ComputedLogits, row: int) -> None:
        self._computed, self._row = computed, row

    def __len__(self) -> int:
        return int(self._computed.logits.shape[1])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        found: Array = self._computed.copied[self._row]
        return found if dtype is None else found.astype(dtype, copy=bool(copy))

    def max(self) -> Any:
        """The largest logit, NaN where any is NaN."""
        return self._computed.on_host[1][self._row]

    def argmax(self) -> int:
        """Id of the first of the largest logits."""
        return int(self._computed.on_host[0][self._row])
