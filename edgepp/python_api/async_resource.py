"""Base of resources that a program opens and closes: engines, connections and services."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self


class AsyncResource(ABC):
    """Something that ``async with`` opens at its beginning and closes at its end."""

    @abstractmethod
    async def open(self) -> None:
        """Make the resource ready for use."""

    @abstractmethod
    async def close(self) -> None:
        """Give up the resource, open or not."""

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
