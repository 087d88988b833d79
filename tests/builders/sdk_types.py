"""An SDK's own types as oracle: a response must have their fields with their types, and no other field."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from functools import cache
from typing import Any

from pydantic import BaseModel, TypeAdapter


def strictly(kind: Any, data: Any, allowed: Collection[str] = ()) -> Any:
    """``data``, JSON or an object of the SDK, as a ``kind``: a model of the SDK or a union of models.

    Fails for a field of the wrong type, or one that ``kind`` does not know and ``allowed`` does not name. A field of
    ``allowed`` is written with the fields that hold it, lists left out, such as ``choices.delta.name``.
    """
    told = data.model_dump(warnings=False, exclude_unset=True) if isinstance(data, BaseModel) else data
    value = _adapter(kind).validate_python(told)
    unknown = set(_unknown(value, "")) - set(allowed)
    assert not unknown, f"fields that the SDK does not know: {sorted(unknown)}"
    return value


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    """The adapter of ``kind``, made once, since a large union takes a second."""
    return TypeAdapter(kind)


def _unknown(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, list | tuple):
        for one in value:
            yield from _unknown(one, path)
    elif isinstance(value, BaseModel):
        yield from (f"{path}{name}" for name in value.model_extra or ())
        for name in type(value).model_fields:
            yield from _unknown(getattr(value, name), f"{path}{name}.")
