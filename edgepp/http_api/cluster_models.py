"""The ``ModelService`` of a cluster that this process coordinates: its model by all its names, answers, and text."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from edgepp.coordinator.ended_answer import OnEnded
from edgepp.engine.request import GenerateOptions
from edgepp.errors import EdgeppError, ModelError, PlanError, UsageError
from edgepp.http_api.failures import RequestError
from edgepp.http_api.generation import IDLE_S, GenerationEvent, GenerationRequest
from edgepp.http_api.generator import LOAD_WAIT_S, LOADING_RETRY_S, Generator, request_error
from edgepp.http_api.model_service import ServedModel
from edgepp.http_api.model_text import ModelText
from edgepp.http_api.served_model_facts import LATEST_TAG, describe_model, plain_name
from edgepp.model.catalogue.source import LocalFolder, resolve
from edgepp.model.text.conversation import Prompt, TokenIds
from edgepp.python_api.answer import Answer
from edgepp.python_api.served_cluster import Invitation, ServedCluster, local_owner
from edgepp.tool_calls.tool_use import ToolUse
from edgepp.tracing.request_trace import RequestTrace

log = logging.getLogger("edgepp.http_api")

_NAME = re.compile(r"[\w][\w./:@+-]{0,199}")
"""Names that a client may ask the catalogue for; a path, which would be looked up on this disk, does not match."""
_MAX_RETRY_S = 60.0


class ClusterModels:
    """The model of a ``ServedCluster``, for the files of the APIs."""

    def __init__(
        self,
        cluster: ServedCluster,
        aliases: Iterable[str] = (),
        load_wait_s: float = LOAD_WAIT_S,
        idle_s: float = IDLE_S,
    ) -> None:
        """Serve the model of ``cluster``, also by each of ``aliases``."""
        self._cluster = cluster
        self._aliases = tuple(aliases)
        self._current: _Current | None = None
        self._generator = Generator(self, load_wait_s, idle_s)
        self._preparing = asyncio.Lock()

    async def prepare(self) -> None:
        """Gather the facts about the model that the cluster runs now, in a thread, unless they are known."""
        async with self._preparing:
            try:
                if not self._is_prepared:
                    await self._generator.threads.run("", self._now)
            except EdgeppError as error:  # the method that needs it fails in the same way
                log.info("nothing is known of the model yet: %s", error)

    @property
    def model(self) -> ServedModel:
        """The model that the cluster runs, or loads."""
        current, context = self._now(), self.context
        state: Literal["loaded", "loading"] = "loading" if self.reason else "loaded"
        if (current.model.context, current.model.state) != (context, state):
            current.model = replace(current.model, context=context, state=state)
        return current.model

    def served(self, name: str | None) -> ServedModel:
        """The served model, if ``name`` is one of its names, or None or empty.

        Raises:
            RequestError: no such model is served; the sentence says which one is.
        """
        model = self.model
        if not name or plain_name(name) in {plain_name(one) for one in model.names} or self._means(name):
            return model
        raise RequestError(
            "not_found",
            f"the model '{name:.200}' is not served here",
            f"this cluster serves {model.name}, also called {', '.join(model.names[1:])}",
            parameter="model",
        )

    def generate(self, request: GenerationRequest) -> AsyncGenerator[GenerationEvent, None]:
        """The events of the answer; closing the iterator cancels the answer on every stage."""
        return self._generator.generate(request)

    async def encode(self, prompt: Prompt, tool_use: ToolUse | None = None, owner: str = "") -> list[int]:
        """The token ids of exactly the prompt that ``generate`` would prefill.

        Raises:
            RequestError: the prompt cannot be encoded, or is much longer than the context.
        """
        try:
            text, context = self.text, self.context
            encoded = await self._generator.threads.run(
                owner, lambda: text.encode(prompt, tool_use or ToolUse(), context, owner, answered=False)
            )
            return encoded.ids
        except EdgeppError as error:
            raise request_error(error) from error

    async def decode(self, token_ids: Sequence[int], owner: str = "") -> str:
        """The text of token ids.

        Raises:
            RequestError: an id is no token of the model.
        """
        try:
            tokenizer = self.text.frontend.tokenizer
            return await self._generator.threads.run(owner, lambda: tokenizer.decode(token_ids, owner))
        except EdgeppError as error:
            raise request_error(error) from error

    async def load(self, model: str) -> None:
        """Run another model, for everybody; answers under way end first. Returns when the model answers.

        Raises:
            RequestError: there is no such model, or it does not fit; the cluster goes on with the former one.
        """
        name = model.removesuffix(LATEST_TAG)
        if not _NAME.fullmatch(name) or ".." in name:
            raise RequestError("not_found", f"there is no model called '{model:.200}'", parameter="model")
        try:
            if isinstance(resolve(name), LocalFolder):
                raise ModelError(f"{name} is a folder", "name a model, or use `edgepp use FOLDER` on that machine")
        except ModelError as error:
            raise RequestError("not_found", str(error), error.hint, parameter="model") from error
        try:
            await self._cluster.load(name)
        except UsageError as error:
            raise RequestError("overloaded", str(error), error.hint, retry_after_s=self.retry_after_s) from error
        except (ModelError, PlanError) as error:
            raise RequestError("invalid_request", str(error), error.hint, parameter="model") from error

    async def invite(self) -> Invitation:
        """A new invitation for one machine.

        Raises:
            RequestError: too many invitations are open, or the pairing port is in use.
        """
        try:
            return await self._cluster.invitation()
        except EdgeppError as error:
            raise RequestError("invalid_request", str(error), error.hint) from error

    async def drain(self, node: str, *, undo: bool) -> Mapping[str, Any]:
        """Begin to move a node's layers to others, or with ``undo`` let the node run layers again.

        Returns the ``name`` of the node, and the ``layers`` that it has now.

        Raises:
            RequestError: no present node has this name or id, or the other nodes cannot hold its layers.
        """
        try:
            return await self._cluster.begin_drain(node, undo=undo)
        except EdgeppError as error:
            raise RequestError("invalid_request", str(error), error.hint, parameter="node") from error

    def observe(self, on_ended: OnEnded) -> None:
        """Register ``on_ended``, which is called with each answer that has ended, of any asker and in any thread."""
        self._cluster.observe(on_ended)

    def status(self) -> Mapping[str, Any]:
        """The state of the cluster, as `edgepp status --json` prints it."""
        return self._cluster.status

    @property
    def text(self) -> ModelText:
        """Text of the model that is served now."""
        return self._now().text

    @property
    def context(self) -> int:
        """Tokens that prompt and answer may have together: one more is refused."""
        return self._cluster.context

    @property
    def reason(self) -> str:
        """Reason why answers wait; empty while the cluster can answer."""
        return self._cluster.reason

    @property
    def is_held(self) -> bool:
        """Whether requests wait until the model has changed."""
        return self._cluster.is_held

    @property
    def retry_after_s(self) -> float:
        """Estimated seconds until a cluster that loads is ready."""
        loading = self.status().get("loading") or {}
        eta_s = loading.get("eta_seconds")
        return LOADING_RETRY_S if eta_s is None else min(max(1.0, eta_s), _MAX_RETRY_S)

    def begin_trace(self, request: GenerationRequest, began_s: float) -> RequestTrace | None:
        """Begin the trace of a request that came at ``began_s``; None if it is not traced."""
        return self._cluster.traces.begin(request.request_id, began_s, local_owner(request.owner))

    def ask(
        self,
        text: ModelText,
        prompt: TokenIds,
        options: GenerateOptions,
        request: GenerationRequest,
        wait_s: float,
        trace: RequestTrace | None,
    ) -> Answer:
        """An answer to a prompt that ``text`` has encoded, for ``request``."""
        return self._cluster.ask(
            prompt,
            options,
            owner=request.owner,
            wait_s=wait_s,
            encoded_by=text.frontend,
            request_id=request.request_id,
            trace=trace,
        )

    def _now(self) -> _Current:
        """Cached facts about the model that the cluster runs now."""
        frontend, current = self._cluster.frontend, self._current
        if current is None or current.text.frontend is not frontend:
            text = ModelText.of(frontend)
            current = self._current = _Current(text, describe_model(text, self._aliases, self.context))
        return current

    @property
    def _is_prepared(self) -> bool:
        return self._current is not None and self._current.text.frontend is self._cluster.frontend

    def _means(self, name: str) -> bool:
        """Whether the catalogue resolves ``name``, such as ``llama3.2:3b``, to the model of this cluster."""
        name = name.removesuffix(LATEST_TAG)
        if not _NAME.fullmatch(name) or ".." in name:
            return False
        try:
            found, own = resolve(name), resolve(self.text.frontend.model)
        except ModelError:
            return False
        return found == own and not isinstance(found, LocalFolder)


@dataclass
class _Current:
    """The model in force."""

    text: ModelText
    model: ServedModel
