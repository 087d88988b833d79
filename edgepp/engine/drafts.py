"""The drafts of a pipeline's requests: lookup in the owner's texts, and a small model where a process guesses."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial

from edgepp.engine.draft_client import DraftClient, Vocabulary
from edgepp.engine.prompt_lookup import OwnerTexts, PromptLookup
from edgepp.engine.remote_draft import RemoteDraft
from edgepp.engine.stage_handshake import Endpoint
from edgepp.errors import EdgeppError
from edgepp.tracing.request_trace import RequestTrace
from edgepp.wire.mailbox import Mailbox
from edgepp.wire.messages.drafts import Drafter
from edgepp.wire.security import KeyPair

SURE_MATCH = 6
"""Tokens of a match behind which lookup is right more often than a small model (0.74, ``bench.lookup``)."""


class LayeredDraft:
    """Guesses of lookup behind a long match, else of a small model; those of lookup alone where the model is not there.

    A guess behind a short match would be wrong more often than that of the model, which is about to come.
    """

    def __init__(self, lookup: PromptLookup, model: RemoteDraft) -> None:
        self._lookup, self._model = lookup, model

    def propose(self, ids: Sequence[int], max_guesses: int) -> Sequence[int]:
        """At most ``max_guesses`` tokens that may follow ``ids``; both sources are told of ``ids``."""
        found = self._lookup.propose(ids, max_guesses)
        modelled = self._model.propose(ids, max_guesses)
        return found if self._lookup.match >= SURE_MATCH or not self._model.follows else modelled

    def record_in(self, trace: RequestTrace) -> None:
        """Record in the trace how long the guesses of the small model take."""
        self._model.trace = trace

    def close(self) -> None:
        """Release both drafts; the request has ended."""
        self._lookup.close()
        self._model.close()


class Drafts:
    """Makes the drafts of all requests of one pipeline. Must be closed, after the engine."""

    def __init__(self, node: str, keys: KeyPair | None, vocabulary: Vocabulary, model: str) -> None:
        """``vocabulary`` is that of ``model``, for which the drafts guess; ``node`` names this machine."""
        self.ready: Mailbox[None] = Mailbox()
        """Gets None when a process has new guesses."""
        self.own: Endpoint | None = None
        """A drafting process of this machine, which guesses while no other one does."""
        self.wanted: Endpoint | None = None
        """The process of another machine that is to guess; None for none."""
        self._texts = OwnerTexts()
        self._new_client = partial(DraftClient, node, keys, vocabulary, model, self.ready)
        self._client: DraftClient | None = None
        self._lock, self._closed = threading.Lock(), False

    def begin(self, owner: str) -> PromptLookup | LayeredDraft:
        """The draft of one request of ``owner``. Called by the engine thread."""
        lookup, client = self._texts.begin(owner), self._client
        return lookup if client is None else LayeredDraft(lookup, client.begin())

    def use(self, endpoint: Endpoint | None) -> Future[None]:
        """Let the drafting process at ``endpoint`` guess from now on, or for None the ``own`` one.

        See ``DraftClient.use``.
        """
        with self._lock:
            if self._closed:
                done: Future[None] = Future()
                done.set_exception(EdgeppError("the pipeline was closed"))
                return done
            if self._client is None:
                self._client = self._new_client()
        self.wanted = endpoint
        return self._client.use(endpoint or self.own)

    @property
    def drafter(self) -> Drafter | None:
        """The drafting process in use; None while no drafting process is reached."""
        return self._client.drafter if self._client is not None else None

    @property
    def problem(self) -> str:
        """Why the wanted drafting process does not guess; empty where it guesses, or where no process is wanted."""
        return self._client.problem if self._client is not None else ""

    def close(self) -> None:
        """End the client's thread."""
        with self._lock:
            self._closed = True
        if self._client is not None:
            self._client.close()
        self.ready.close()
