"""An answer for ``asyncio``: a thread reads it and passes each piece to the event loop."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import AbstractContextManager, aclosing, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgepp.engine.request import FinishReason
from edgepp.engine.ring import StageInfo
from edgepp.engine.sampling import Sampled
from edgepp.engine.text_stream import TextPiece, TextStream
from edgepp.engine.timing import Timing
from edgepp.error_boundary import explained
from edgepp.errors import EdgeppError, NotReady, Overloaded, StageLost, UsageError

if TYPE_CHECKING:  # an engine on this machine needs no coordinator
    from edgepp.coordinator.client import RemoteAnswer
    from edgepp.coordinator.live_answer import LiveAnswer

log = logging.getLogger("edgepp.python_api")


class Answer:
    """One answer: iterate over it once for its text as it comes, or await ``whole()``.

    ``token_ids`` grows with each piece of text, and so does ``sampled`` if log-probabilities were requested (through a
    cluster ``sampled`` is filled at the end). ``finish_reason`` is None until the answer has ended.
    """

    def __init__(
        self,
        begin: Callable[[], AbstractContextManager[Begun]],
        reopen: Callable[[], Coroutine[Any, Any, None]] | None = None,
    ) -> None:
        """Make an answer that begins when it is read.

        Args:
            begin: Starts the answer, in the reading thread.
            reopen: Opens the engine again. If a stage is lost before any text was read, the answer begins once more.
        """
        self._begin = begin
        self._reopen = reopen
        self._stop: Callable[[], None] | None = None
        self._waiting: Callable[[], str] | None = None
        self._request_id: Callable[[], str] = str
        self._cancelled = False
        self._inbox: _Inbox | None = None
        self._ended: asyncio.Event | None = None
        """Set when the reading thread has ended; None before it has begun."""
        self._pieces: list[str] = []
        self.token_ids: list[int] = []
        self.sampled: list[Sampled] = []
        """One per token, if log-probabilities were requested."""
        self.prompt_sampled: list[Sampled] = []
        """One per token of the prompt but the first, if ``GenerateOptions.prompt_logprobs`` asked for them; complete
        when the first token comes, through a ``Connection`` at the end."""
        self.spelled: Mapping[int, str] = {}
        """The text of each token in ``sampled`` and ``prompt_sampled``, by token id; filled at the end."""
        self.finish_reason: FinishReason | None = None
        self.stop_string: str | None = None
        """The stop string that ended the text, if one did."""
        self.prompt_tokens = 0
        self.timing = Timing(0.0)
        self.stages: tuple[StageInfo, ...] = ()

    @property
    def text(self) -> str:
        """The text read so far."""
        return "".join(self._pieces)

    @property
    def request_id(self) -> str:
        """The name of the request in logs and traces; through a ``Connection`` it is known at the end."""
        return self._request_id()

    @property
    def waiting(self) -> str:
        """Reason why a cluster has not begun the answer, such as loads or missing nodes; empty afterwards."""
        waiting = self._waiting
        return "" if waiting is None or self.finish_reason is not None else waiting()

    async def whole(self) -> Answer:
        """Read to the end and return this answer.

        Raises:
            EdgeppError: the answer cannot begin, or ended early by an error.
        """
        if self.finish_reason is None:
            async for _ in self:
                continue
        return self

    def cancel(self) -> None:
        """Stop the answer. Text computed before can still be read; ``finish_reason`` becomes ``cancelled``."""
        self._cancelled = True
        stop = self._stop
        if stop is not None:
            stop()

    async def __aiter__(self) -> AsyncIterator[str]:
        """Pieces of text as they come; leaving the loop early cancels the answer.

        Raises:
            UsageError: the answer was read before.
            EdgeppError: the answer cannot begin, or ended early by an error; the text read so far stays.
        """
        async with aclosing(self.pieces()) as pieces:
            async for piece in pieces:
                if piece.text:
                    yield piece.text

    async def pieces(self) -> AsyncGenerator[TextPiece, None]:
        """Pieces of text with the tokens that they are made of, if log-probabilities were requested.

        An empty piece tells that the prompt was accepted, and ``prompt_tokens``; a ``Connection`` knows these at the
        end. ``timing.reused`` is known from the next piece on. Leaving the loop early cancels the answer.

        Raises:
            UsageError: the answer was read before.
            EdgeppError: the answer cannot begin, or ended early by an error; the text read so far stays.
        """
        woken = asyncio.Event()
        self.start(woken.set)
        try:
            while self.finish_reason is None:
                piece = self.take()
                if piece is not None:
                    yield piece
                else:
                    await woken.wait()
                    woken.clear()
        finally:
            await self.stop()

    def start(self, wake: Callable[[], None]) -> None:
        """Begin the answer in a thread of its own, to be read by ``take``; at the end, await ``stop()``.

        ``wake`` is called in the event loop after pieces have come.

        Raises:
            UsageError: the answer was read before.
            EdgeppError: no thread can be started.
        """
        if self._ended is not None:
            raise UsageError("an answer can be read only once", "use its `text`, or ask again")
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        inbox = self._inbox = _Inbox(loop, wake)

        def read() -> None:
            try:
                for piece in self._read(loop):
                    inbox.put(piece)
            finally:
                inbox.call(ended.set)

        try:
            threading.Thread(target=read, name="answer", daemon=True).start()
        except RuntimeError as error:
            raise Overloaded(f"no more can be answered at once: {error}", "ask again later") from error
        self._ended = ended

    def take(self) -> TextPiece | None:
        """The next piece that has come, perhaps an empty one; None if no piece waits.

        The first piece is empty where it only tells ``prompt_tokens``; the last one brings the ``finish_reason``.

        Raises:
            EdgeppError: the answer cannot begin, or ended early by an error.
        """
        piece = self._inbox.take() if self._inbox else None
        if isinstance(piece, EdgeppError):
            raise piece
        if piece is None:
            return None
        self._take(piece)
        return piece.piece

    async def stop(self) -> None:
        """Cancel the answer unless it has ended, and wait until its thread has ended."""
        if self._ended is not None:
            if not self._ended.is_set():
                self.cancel()
            await self._ended.wait()

    def _read(self, loop: asyncio.AbstractEventLoop) -> Iterator[_Piece | EdgeppError]:
        """All pieces, in the reading thread; the last one has a finish reason or is an error."""
        begun = False
        try:
            try:
                for piece in self._attempt():
                    begun = begun or bool(piece.piece.text)
                    yield piece
            except StageLost:
                if begun or self._cancelled or self._reopen is None or not self._reopened(self._reopen, loop):
                    raise
                yield from self._attempt()
        except EdgeppError as error:
            yield error
        except GeneratorExit:  # the reader has left
            raise
        except BaseException as error:  # noqa: BLE001 - outermost level of the thread; a panic in Rust is not an Exception
            yield explained(error)
        finally:
            self._stop = self._waiting = None

    def _attempt(self) -> Iterator[_Piece]:
        with self._begin() as begun:
            answer, self._stop, self._waiting = begun.answer, begun.cancel, begun.waiting
            self._request_id = begun.request_id
            if self._cancelled:
                begun.cancel()
            if answer.prompt_tokens:  # else the answer tells it
                yield _Piece(TextPiece(""), 0, answer)
            for piece in answer.pieces():
                yield _Piece(piece, len(answer.token_ids), answer)
            self._stop = None
        if answer.finish_reason is None:
            raise RuntimeError("the answer ended without a reason")
        if answer.finish_reason == "cancelled" and not self._cancelled:
            raise NotReady("the cluster was closed while it answered", "ask again when it serves again")
        yield _Piece(TextPiece(""), len(answer.token_ids), answer, answer.finish_reason)

    @staticmethod
    def _reopened(reopen: Callable[[], Coroutine[Any, Any, None]], loop: asyncio.AbstractEventLoop) -> bool:
        try:
            asyncio.run_coroutine_threadsafe(reopen(), loop).result()
        except EdgeppError as error:  # the loss itself is raised: its message names the stage
            log.info("the engine cannot be opened again: %s", error)
            return False
        return True

    def _take(self, piece: _Piece) -> None:
        answer = piece.answer
        self._pieces.append(piece.piece.text)
        self.token_ids += answer.token_ids[len(self.token_ids) : piece.tokens]
        self.sampled += answer.sampled[len(self.sampled) : piece.tokens]
        self.prompt_tokens, self.timing, self.stages = answer.prompt_tokens, answer.timing, answer.stages
        if piece.tokens or piece.reason is not None:
            self.prompt_sampled = answer.prompt_sampled
        if piece.reason is not None:
            self.spelled, self.stop_string = answer.spelled, answer.stop_string
        self.finish_reason = piece.reason


@dataclass(frozen=True)
class Begun:
    """A started answer; ``cancel`` may be called from any thread."""

    answer: TextStream | RemoteAnswer | LiveAnswer
    cancel: Callable[[], None]
    waiting: Callable[[], str] = str
    """Reason why the answer does not begin yet; empty if it waits for nothing."""
    request_id: Callable[[], str] = str
    """The name of the request in logs and traces; empty where that is not known yet."""


@dataclass(frozen=True)
class _Piece:
    """Some text of an answer; ``tokens`` counts the tokens up to its end. The last piece has the finish reason."""

    piece: TextPiece
    tokens: int
    answer: TextStream | RemoteAnswer | LiveAnswer
    reason: FinishReason | None = None


class _Inbox:
    """A queue of pieces from the reading thread, taken in the event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, wake: Callable[[], None]) -> None:
        self._loop = loop
        self._wake = wake
        self._pieces: deque[_Piece | EdgeppError] = deque()
        self._waking = False
        """Whether the loop will call ``wake``; so that pieces that come together wake it once."""

    def put(self, piece: _Piece | EdgeppError) -> None:
        """Add a piece, in the reading thread."""
        self._pieces.append(piece)
        if not self._waking:
            self._waking = True
            self.call(self._woken)

    def take(self) -> _Piece | EdgeppError | None:
        """The oldest piece; None if there is none."""
        return self._pieces.popleft() if self._pieces else None

    def call(self, work: Callable[[], object]) -> None:
        """Have the event loop call ``work``, in the reading thread."""
        with suppress(RuntimeError):  # the loop is closed, so nobody reads on
            self._loop.call_soon_threadsafe(work)

    def _woken(self) -> None:
        self._waking = False
        self._wake()
