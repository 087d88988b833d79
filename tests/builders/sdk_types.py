"""Data held to the pydantic types of a client's SDK, with no field that the types do not have."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import pydantic


def exact(kind: Any, data: Any) -> Any:
    """``data`` as a ``kind`` of an SDK, a model or a union of models; fails for a wrong or an unknown field."""
    value = _adapter(kind).validate_python(data)
    unknown = list(_unknown(value, getattr(kind, "__name__", "value")))
    assert not unknown, f"fields that the SDK does not know: {unknown}"
    return value


@cache
def _adapter(kind: Any) -> pydantic.TypeAdapter[Any]:
    """Made once: a large union takes a second."""
    return pydantic.TypeAdapter(kind)


def _unknown(value: Any, where: str) -> Iterator[str]:
    if isinstance(value, pydantic.BaseModel):
        yield from (f"{where}.{name}" for name in value.model_extra or ())
        for name in type(value).model_fields:
            yield from _unknown(getattr(value, name), f"{where}.{name}")
    elif isinstance(value, list | tuple):
        for index, part in enumerate(value):
            yield from _unknown(part, f"{where}[{index}]")
