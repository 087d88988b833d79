"""An SDK's own types as oracle: a response must have their fields with their types, and no other field."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from pydantic import BaseModel, TypeAdapter


def strictly(kind: Any, told: BaseModel, allowed: Collection[str] = ()) -> None:
    """Fail where ``told`` is no ``kind``, or has a field that ``kind`` does not know and ``allowed`` does not name.

    A field of ``allowed`` is written with the fields that hold it, lists left out, such as ``choices.delta.name``.
    """
    checked = TypeAdapter(kind).validate_python(told.model_dump(warnings=False, exclude_unset=True))
    unknown = set(_unknown(checked, ""))
    assert unknown <= set(allowed), f"fields that {kind.__name__} does not know: {sorted(unknown - set(allowed))}"


def _unknown(value: Any, path: str) -> list[str]:
    if isinstance(value, list):
        return [name for one in value for name in _unknown(one, path)]
    if not isinstance(value, BaseModel):
        return []
    known = [name for field in value.model_fields_set for name in _unknown(getattr(value, field), f"{path}{field}.")]
    return [f"{path}{name}" for name in value.model_extra or {}] + known
