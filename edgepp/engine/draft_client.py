"""Guesses of a small model in another process, on this machine or another: they arrive while the engine goes on.

A thread of its own sends the texts of requests (``RemoteDraft``) to the drafting process and receives its guesses. A
process that is slow, silent, wrong or gone costs its guesses and nothing else.
"""

from __future__ import annotations

import itertools
import logging
import math
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeAlias

import zmq

from edgepp.engine.remote_draft import RemoteDraft
from edgepp.engine.stage_handshake import ANSWER_S, Endpoint
from edgepp.error_boundary import failure
from edgepp.errors import EdgeppError, PlanError, RemoteProtocolError, UsageError
from edgepp.wire.happy_eyeballs import connect_first
from edgepp.wire.mailbox import Mailbox, Poller
from edgepp.wire.message_codec import decode, encode
from edgepp.wire.messages import MAX_CONTROL_FRAME_BYTES
from edgepp.wire.messages.control import Hello, Refused
from edgepp.wire.messages.drafts import Drafter, Forget, Guessed, Unread
from edgepp.wire.permissions import check_speaker
from edgepp.wire.security import KeyPair, pinned
from edgepp.wire.transport import Link

log = logging.getLogger("edgepp.engine")

RETRY_S = 2.0
"""How long after a failure the process is tried again."""
DISTRUST_S = 30.0
"""How long after a message that breaks the protocol the process is tried again."""
_WINDOW_S = 0.05
_MAX_MESSAGES_PER_WINDOW = 100
"""Messages that are read per window, so that a flood does not take the interpreter from the engine."""


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a model."""

    digest: Callable[[], str]
    """A digest of their texts and ids, which takes a tenth of a second to compute."""
    size: int
    """Ids are below this number."""


@dataclass(frozen=True)
class _Use:
    """An order to use the process at another endpoint, or none; ``done`` is told the outcome of the first try."""

    endpoint: Endpoint | None
    done: Future[None]


@dataclass(frozen=True)
class _End:
    """An order to forget a draft."""

    draft: RemoteDraft


Order: TypeAlias = "RemoteDraft | _Use | _End | None"
"""A draft with something to tell, or one of the others; None ends the client."""


class DraftClient(threading.Thread):
    """Sends texts to one drafting process at a time, and receives its guesses. Must be closed."""

    def __init__(
        self, node: str, keys: KeyPair | None, vocabulary: Vocabulary, model: str, ready: Mailbox[None]
    ) -> None:
        """Start the thread, which connects nowhere until ``use``; ``ready`` gets None when new guesses have arrived.

        ``vocabulary`` is that of ``model``, for which the process guesses.
        """
        super().__init__(name="drafts", daemon=True)
        self._node, self._keys, self._model = node, keys, model
        self._vocabulary = vocabulary
        self._ready = ready
        self.orders: Mailbox[Order] = Mailbox()
        self._due: deque[Order] = deque()
        """Orders that were taken from the mailbox and not carried out yet."""
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._use: _Use | None = None
        self._drafts: dict[int, RemoteDraft] = {}
        self._sequences = itertools.count(secrets.randbits(61))
        self._connections = itertools.count(1)
        self._closing = False
        self._window_s, self._in_window = 0.0, 0
        self.connection = 0
        """Number of the present connection; 0 for none."""
        self.drafter: Drafter | None = None
        """The drafting process in use; None while no drafting process is reached."""
        self.problem = ""
        """Why the wanted drafting process does not guess; empty where it guesses, or where no process is wanted."""
        self.start()

    def begin(self) -> RemoteDraft:
        """A draft for one request."""
        draft = RemoteDraft(next(self._sequences), lambda: self.connection, self.orders.put, self._end)
        self._drafts[draft.sequence] = draft
        return draft

    def _end(self, draft: RemoteDraft) -> None:
        """Forget a draft; does nothing once the client is closed, or has failed."""
        self._drafts.pop(draft.sequence, None)
        if not self._closing and self.is_alive():
            self.orders.put(_End(draft))

    def use(self, endpoint: Endpoint | None) -> Future[None]:
        """Use the process at ``endpoint`` from now on, or none; the result is set once it is reached.

        It is an ``EdgeppError`` where the first try fails; the client goes on trying.
        """
        order = _Use(endpoint, Future())
        try:
            self.orders.put(order)
        except OSError:
            order.done.set_exception(EdgeppError("the client of the process that guesses was closed"))
        return order.done

    def close(self) -> None:
        """End the thread."""
        self._closing = True
        self.orders.put(None)
        self.join()
        self.orders.close()

    def run(self) -> None:
        """Carry out orders until the order None."""
        try:
            while self._serve_once():
                continue
        except Exception as error:  # noqa: BLE001 - the boundary of the thread: guesses end, and answers go on
            self.problem = str(failure(error, "receiving guesses"))
        finally:
            self.connection, self.drafter = 0, None
            self._settle(EdgeppError("the client of the process that guesses was closed"))
            self._context.term()

    def _serve_once(self) -> bool:
        """Serve one connection, or wait without one for the next try; False once the client is closed."""
        link, retry_s = self._reach()
        try:
            if link is not None:
                self.problem = ""
                self.connection = next(self._connections)
                self._settle()
            return self._serve(link, time.monotonic() + retry_s)
        except RemoteProtocolError as error:
            log.warning("the process that guesses broke the protocol: %s", error)
            self.problem = f"it broke the protocol: {error}"
        finally:
            self.connection, self.drafter = 0, None
            if link is not None:
                link.close()
        return self._serve(None, time.monotonic() + DISTRUST_S)

    def _reach(self) -> tuple[Link | None, float]:
        """The link to the wanted process, if it answers and its tokens fit; and the seconds until the next try."""
        use = self._use
        if use is None or use.endpoint is None:
            return None, math.inf
        link: Link | None = None
        try:
            link, frames = connect_first(
                self._context,
                use.endpoint.addresses,
                Hello(self._node),
                ANSWER_S,
                MAX_CONTROL_FRAME_BYTES,
                pinned(self._keys, use.endpoint.key),
                given_up=lambda: self._closing,
            )
            self.drafter = self._welcomed(frames)
        except EdgeppError as error:
            if link is not None:
                link.close()
            self.problem = str(error)
            self._settle(error)
            return None, DISTRUST_S if isinstance(error, UsageError | PlanError) else RETRY_S
        return link, math.inf

    def _settle(self, error: EdgeppError | None = None) -> None:
        """Report the outcome of the first try to the caller of ``use``, once."""
        if self._use is None or self._use.done.done():
            return
        if error is None:
            self._use.done.set_result(None)
        else:
            self._use.done.set_exception(error)

    def _welcomed(self, frames: Sequence[memoryview]) -> Drafter:
        """The process that answered.

        Raises:
            EdgeppError: it is no drafting process, or guesses other tokens.
        """
        answer = decode(frames[0])
        if not isinstance(answer, Drafter):
            reason = answer.reason if isinstance(answer, Refused) else f"it answered {type(answer).__name__}"
            raise PlanError(f"that process does not guess: {reason}", "run the same edgepp everywhere")
        if answer.vocabulary != self._vocabulary.digest():
            raise UsageError(
                f"{answer.model} cannot guess for {self._model}: their tokens differ",
                "name a small model of the same family, or use `lookup`",
            )
        return answer

    def _serve(self, link: Link | None, until_s: float) -> bool:
        """Follow orders, and pass guesses on, until the link fails, another process is wanted, or ``until_s``.

        Returns False once the client is closed.
        """
        poller = Poller[Order](self.orders, *([link] if link is not None else []))
        while time.monotonic() < until_s and (link is None or link.is_connected()):
            if link is not None and self._in_window < _MAX_MESSAGES_PER_WINDOW:
                self._receive(link)
            self._due.extend(self.orders.drain())
            while self._due:
                match self._due.popleft():
                    case None:
                        return False
                    case _Use() as use:
                        self._settle(EdgeppError("another process is to guess"))
                        self._use, self.problem = use, ""
                        if use.endpoint is None:
                            self._settle()
                        return True
                    case order if link is not None:
                        self._send(link, order)
            self._wait(poller)
        return True

    def _wait(self, poller: Poller[Order]) -> None:
        """Wait for orders or messages; after many messages, for the next window."""
        now_s = time.monotonic()
        if now_s - self._window_s >= _WINDOW_S:
            self._window_s, self._in_window = now_s, 0
        if self._in_window < _MAX_MESSAGES_PER_WINDOW:
            poller.wait(0.5)
        else:
            time.sleep(max(0.0, self._window_s + _WINDOW_S - now_s))
            self._in_window = 0

    def _send(self, link: Link, order: RemoteDraft | _End) -> None:
        if isinstance(order, _End):
            link.send([encode(Forget(order.draft.sequence))])
        elif not all(link.send([encode(message)]) for message in order.take_unsent()):
            order.lose()

    def _receive(self, link: Link) -> None:
        """Take in the messages that wait.

        Raises:
            RemoteProtocolError: the process broke the protocol.
        """
        woken = False
        while self._in_window < _MAX_MESSAGES_PER_WINDOW and (frames := link.receive()) is not None:
            self._in_window += 1
            message = decode(frames[0])
            check_speaker(message, "draft", "drafter")
            match message:
                case Guessed() if (draft := self._drafts.get(message.sequence)) is not None:
                    woken |= draft.take(message, self._vocabulary.size)
                case Unread() if (draft := self._drafts.get(message.sequence)) is not None:
                    draft.lose()
                case Refused():
                    raise RemoteProtocolError(message.reason)
        if woken:
            self._ready.put(None)
