"""A JSON object of settings whose values are checked for type and range when they are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from edgepp.errors import ModelError
from edgepp.model.bounded_files import shown

_FLOAT32 = (1.1754944e-38, 3.4028234e38)
"""Smallest and largest positive number of full precision in float32, in which backends compute."""
_HINT = "take the model from where it was published, or correct the file"


@dataclass(frozen=True)
class Section:
    """Settings of a model; ``where`` names their place in error messages. A null value counts as absent."""

    where: str
    values: Mapping[str, Any]

    def get(self, key: str) -> Any:
        """The unchecked value of ``key``; None where it is absent."""
        return self.values.get(key)

    def size(self, key: str, default: int | None = None, maximum: int = 2**31 - 1) -> int:
        """The whole number ``key``, from 1 to ``maximum``; ``default`` where the key is absent.

        Raises:
            ModelError: the value is not such a number, or is absent and has no default.
        """
        value = self.get(key)
        if value is None and default is not None:
            return default
        if type(value) is not int or not 0 < value <= maximum:
            self.refuse(key)
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """The number ``key``, positive and in the range of float32; ``default`` where the key is absent.

        Raises:
            ModelError: the value is not such a number, or is absent and has no default.
        """
        value = self.get(key)
        if value is None and default is not None:
            return default
        if type(value) not in (int, float) or not _FLOAT32[0] <= value <= _FLOAT32[1]:
            self.refuse(key)
        return float(value)

    def numbers(self, key: str, length: int) -> list[float]:
        """The list ``key`` of ``length`` numbers, positive and in the range of float32.

        Raises:
            ModelError: the value is not such a list, or is absent.
        """
        value = self.get(key)
        if not isinstance(value, list) or len(value) != length:
            self.refuse(key)
        return [Section(self.where, {key: item}).number(key) for item in value]

    def flag(self, key: str, default: bool = False) -> bool:
        """The boolean ``key``; ``default`` where the key is absent.

        Raises:
            ModelError: the value is not a boolean.
        """
        value = self.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.refuse(key)
        return value

    def text(self, key: str, default: str) -> str:
        """The string ``key``; ``default`` where the key is absent.

        Raises:
            ModelError: the value is not a string.
        """
        value = self.get(key)
        if value is None:
            return default
        if not isinstance(value, str):
            self.refuse(key)
        return value

    def section(self, key: str) -> Section:
        """The JSON object ``key`` as a section; an empty section where the key is absent.

        Raises:
            ModelError: the value is not an object.
        """
        value = self.get(key)
        if value is None:
            value = {}
        if not isinstance(value, dict):
            self.refuse(key)
        return Section(f"{key} in {self.where}", value)

    def refuse(self, key: str) -> NoReturn:
        """Raise the error for an unusable value of ``key``.

        Raises:
            ModelError: always.
        """
        given = "it is absent" if self.get(key) is None else f"it is {shown(repr(self.get(key)), 40)}"
        raise ModelError(f"{self.where} has no usable {key}: {given}", _HINT)
