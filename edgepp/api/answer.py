"""An answer as it comes, read in a thread of its own and handed to the event loop."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from typing import Any

from edgepp.coordinator.client import RemoteAnswer
from edgepp.engine.request import FinishReason, Timing
from edgepp.engine.ring import StageInfo
from edgepp.engine.sampling import Sampled
from edgepp.engine.text_stream import TextStream
from edgepp.error_boundary import explained
from edgepp.errors import EdgeppError, StageLost, UsageError

log = logging.getLogger("edgepp.api")


class Answer:
    """An answer as it comes: iterate over it once for its text, or wait for the ``whole`` of it.

    With each piece come its tokens and, if they were asked for, their log-probabilities (through a cluster those come
    with the end). Why it ended is known at the end.
    """

    def __init__(
        self,
        begin: Callable[[], AbstractContextManager[Begun]],
        reopen: Callable[[], Coroutine[Any, Any, None]] | None = None,
    ) -> None:
        """After ``reopen``, an answer that lost a stage before anything of it was read begins once more."""
        self._begin = begin
        self._reopen = reopen
        self._stop: Callable[[], None] | None = None
        self._waiting: Callable[[], str] | None = None
        self._read_before = self._cancelled = False
        self._pieces: list[str] = []
        self.token_ids: list[int] = []
        self.sampled: list[Sampled] = []
        """One for each token, where log-probabilities were asked for."""
        self.spelled: Mapping[int, str] = {}
        """The text of each token that ``sampled`` names, by itself; known at the end."""
        self.finish_reason: FinishReason | None = None
        self.prompt_tokens = 0
        self.timing = Timing(0.0)
        self.stages: tuple[StageInfo, ...] = ()

    @property
    def text(self) -> str:
        """All that has been read of it."""
        return "".join(self._pieces)

    @property
    def waiting(self) -> str:
        """Why the cluster has not begun the answer: what it loads, or which machines are away; empty once it has."""
        waiting = self._waiting
        return "" if waiting is None or self.finish_reason is not None else waiting()

    async def whole(self) -> Answer:
        """Wait for all of it; it is returned itself.

        Raises:
            EdgeppError: it cannot be given, or not finished.
        """
        if self.finish_reason is None:
            async for _ in self:
                continue
        return self

    def cancel(self) -> None:
        """Stop it. What came before can still be read; ``finish_reason`` is then ``cancelled``."""
        self._cancelled = True
        stop = self._stop
        if stop is not None:
            stop()

    async def __aiter__(self) -> AsyncIterator[str]:
        """Pieces of text as they come; leaving early cancels the rest.

        Raises:
            EdgeppError: it cannot be given, or not finished; what was read so far stands.
        """
        if self._read_before:
            raise UsageError("an answer is read once", "keep what was read, or ask again")
        self._read_before = True
        loop = asyncio.get_running_loop()
        heard: asyncio.Queue[_Piece | EdgeppError] = asyncio.Queue()
        ended = asyncio.Event()

        def tell(call: Callable[..., None], *about: object) -> None:
            with suppress(RuntimeError):  # the loop was closed, so nobody reads on
                loop.call_soon_threadsafe(call, *about)

        def read() -> None:
            try:
                for piece in self._read(loop):
                    tell(heard.put_nowait, piece)
            finally:
                tell(ended.set)

        threading.Thread(target=read, name="answer", daemon=True).start()
        try:
            while self.finish_reason is None:
                piece = await heard.get()
                if isinstance(piece, EdgeppError):
                    raise piece
                self._take(piece)
                if piece.text:
                    yield piece.text
        finally:
            if not ended.is_set():
                self.cancel()
            await ended.wait()

    def _read(self, loop: asyncio.AbstractEventLoop) -> Iterator[_Piece | EdgeppError]:
        """All of it, in a thread of its own; the last one has a reason or is an error."""
        shown = False
        try:
            try:
                for piece in self._attempt():
                    shown = True
                    yield piece
            except StageLost:
                if shown or self._cancelled or self._reopen is None or not self._reopened(self._reopen, loop):
                    raise
                yield from self._attempt()
        except EdgeppError as error:
            yield error
        except GeneratorExit:  # nobody hears it any more
            raise
        except BaseException as error:  # noqa: BLE001 - the thread's boundary: a panic in Rust is no Exception
            yield explained(error)
        finally:
            self._stop = self._waiting = None

    def _attempt(self) -> Iterator[_Piece]:
        with self._begin() as begun:
            answer, self._stop, self._waiting = begun.answer, begun.cancel, begun.waiting
            if self._cancelled:
                begun.cancel()
            for text in answer:
                yield _Piece(text, len(answer.token_ids), answer)
            self._stop = None
        if answer.finish_reason is None:
            raise RuntimeError("the answer ended without a reason")
        yield _Piece("", len(answer.token_ids), answer, answer.finish_reason)

    @staticmethod
    def _reopened(reopen: Callable[[], Coroutine[Any, Any, None]], loop: asyncio.AbstractEventLoop) -> bool:
        try:
            asyncio.run_coroutine_threadsafe(reopen(), loop).result()
        except EdgeppError as error:  # the loss itself says more: it names the stage
            log.info("what was lost cannot be opened again: %s", error)
            return False
        return True

    def _take(self, piece: _Piece) -> None:
        answer = piece.answer
        self._pieces.append(piece.text)
        self.token_ids += answer.token_ids[len(self.token_ids) : piece.tokens]
        self.sampled += answer.sampled[len(self.sampled) : piece.tokens]
        self.prompt_tokens, self.timing, self.stages = answer.prompt_tokens, answer.timing, answer.stages
        if piece.reason is not None:
            self.spelled = answer.spelled
        self.finish_reason = piece.reason


@dataclass(frozen=True)
class Begun:
    """An answer under way; ``cancel`` may be called from any thread."""

    answer: TextStream | RemoteAnswer
    cancel: Callable[[], None]
    waiting: Callable[[], str] = str
    """What the answer waits for before it begins; empty where there is nothing."""


@dataclass(frozen=True)
class _Piece:
    """Some text of an answer, up to its first so many ``tokens``; the last one says why it ended."""

    text: str
    tokens: int
    answer: TextStream | RemoteAnswer
    reason: FinishReason | None = None
