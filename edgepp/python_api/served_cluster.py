"""A cluster that this program coordinates, with the stages of this machine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from edgepp.coordinator.client import CoordinatorClient
from edgepp.coordinator.composition_root import CoordinatorService, ServeOptions
from edgepp.coordinator.ended_answer import OnEnded
from edgepp.coordinator.live_answer import PIPELINE_WAIT_S
from edgepp.coordinator.model_change import ModelChange
from edgepp.coordinator.status_sources import HttpAddress
from edgepp.engine.frontend import ModelFrontend
from edgepp.engine.request import GenerateOptions
from edgepp.python_api.answer import Answer, Begun
from edgepp.python_api.background_service import Background
from edgepp.python_api.question import Question, conversation_or_raw
from edgepp.tracing.request_trace import RequestTrace, TraceLog
from edgepp.wire.address import Address
from edgepp.wire.field_types import Verb

_CHANGE_LOOK_S = 0.1


@dataclass(frozen=True)
class Invitation:
    """An open invitation for one machine."""

    code: str
    addresses: tuple[str, ...]
    """Addresses of this machine for a machine that does not find it by itself, each as ``HOST:PORT``."""
    expires_in_s: float


class ServedCluster(Background[CoordinatorService]):
    """A cluster that this program coordinates. Use it in an ``async with`` statement.

    ``edgepp.connect`` and `edgepp chat` reach it, here and on any machine that joined.
    """

    def __init__(self, options: ServeOptions) -> None:
        super().__init__(lambda on_event, progress, given_up: CoordinatorService(options, on_event, progress, given_up))

    @property
    def address(self) -> str:
        """Address of the coordinator for nodes and chats on this machine, as ``HOST:PORT``."""
        return str(self._service.coordinator.local_address)

    @property
    def status(self) -> Mapping[str, Any]:
        """The state of the cluster, as `edgepp status --json` prints it."""
        return self._service.report()

    @property
    def frontend(self) -> ModelFrontend:
        """The coordinator's part of the model: its checkpoint and its tokenizer."""
        return self._service.pipeline_manager.frontend

    @property
    def context(self) -> int:
        """Tokens that prompt and answer may have together; while the model loads, as many as are planned for."""
        planned = self._service.coordinator.planner.request.context
        pipeline = self._service.pipeline_manager.pipeline
        return planned if pipeline is None else min(planned, pipeline.context)

    @property
    def reason(self) -> str:
        """Reason why answers wait, such as machines that are away; empty while the cluster can answer."""
        return self._service.coordinator.reason

    @property
    def is_held(self) -> bool:
        """Whether new questions wait until the model has changed."""
        return bool(self._service.pipeline_manager.held)

    @property
    def loading(self) -> Mapping[str, float]:
        """Downloads and loads on the nodes: a description, and the fraction done from 0 to 1."""
        progress = list(self._service.coordinator.rollout.progress.values())
        return {one.what: min(1.0, one.done_bytes / one.total_bytes) for one in progress if one.total_bytes}

    async def ready(self) -> None:
        """Wait until the cluster can answer.

        Raises:
            EdgeppError: the cluster was closed, or a part of it failed.
        """
        while self._service.pipeline_manager.pipeline is None:
            await self._next_change()

    def ask(
        self,
        prompt: Question,
        options: GenerateOptions | None = None,
        *,
        raw: bool = False,
        owner: str = "",
        wait_s: float = PIPELINE_WAIT_S,
        encoded_by: ModelFrontend | None = None,
        request_id: str = "",
        trace: RequestTrace | None = None,
    ) -> Answer:
        """An answer to ``prompt``, which begins when it is read; it does not pass the cluster's socket.

        Args:
            prompt: A question; a conversation, or its messages; or token ids.
            options: Length, sampling and constraint; greedy and unconstrained by default.
            raw: Send a text unchanged, without the chat template of the model.
            owner: Who asks, such as the name of an API key: for equal shares, and for the reuse of earlier prompts.
            wait_s: Seconds to wait until the cluster can answer.
            encoded_by: The ``frontend`` whose tokenizer made a prompt of token ids; another model refuses the prompt.
            request_id: The name of the request in logs; a new one by default.
            trace: The record of the request's times, begun by ``traces``; None for a request that is not traced.

        Raises:
            UsageError: ``raw`` with a conversation.
        """
        sent = conversation_or_raw(prompt, raw=raw)
        service = self._service

        @contextmanager
        def begin() -> Iterator[Begun]:
            answers, asker = service.coordinator.live_answers, local_owner(owner)
            with answers.asking(
                asker, sent, options or GenerateOptions(), wait_s, encoded_by, request_id, trace
            ) as live:
                yield Begun(
                    live,
                    live.cancel,
                    lambda: "" if live.prompt_tokens else service.coordinator.reason,
                    lambda: live.request_id,
                )

        return Answer(begin)

    @property
    def traces(self) -> TraceLog:
        """The traces of the newest requests of all askers."""
        return self._service.coordinator.live_answers.traces

    def observe(self, on_ended: OnEnded) -> None:
        """Register ``on_ended``, which is called with each answer that has ended, of any asker and in any thread."""
        self._service.coordinator.live_answers.observers.append(on_ended)

    def tell_http(self, http: HttpAddress | None) -> None:
        """Add the address of this program's HTTP server to the status; None for no server."""
        self._service.coordinator.tell_http(http)

    async def load(self, model: str, on_change: Callable[[ModelChange], None] = lambda _: None) -> None:
        """Change the model while the cluster runs: answers under way end first, and new questions wait.

        ``on_change`` is called ten times per second with the state of the change. A change that nobody awaits goes on.

        Raises:
            UsageError: another change is under way.
            EdgeppError: the model cannot be had or does not fit; the cluster goes on with the former one.
        """
        changer = self._service.coordinator.changer
        changer.begin(model)
        while (change := changer.change) is not None and change.under_way:
            on_change(change)
            await asyncio.sleep(_CHANGE_LOOK_S)
        if change is not None and change.error is not None:
            raise change.error

    async def invite(self) -> str:
        """A code that lets one other machine join within ten minutes, by `edgepp join CODE` or ``edgepp.join(CODE)``.

        Raises:
            EdgeppError: too many invitations are open, or the pairing port (the cluster's plus one) is in use.
        """
        return (await self.invitation()).code

    async def invitation(self) -> Invitation:
        """A code as of ``invite``, with the addresses of this machine.

        Raises:
            EdgeppError: too many invitations are open, or the pairing port (the cluster's plus one) is in use.
        """
        told = await self._call("invite")
        addresses = tuple(str(Address(host, told["port"])) for host in told["addresses"])
        return Invitation(str(told["code"]), addresses, float(told["expires_in_s"]))

    async def token(self) -> str:
        """A token that lets machines join, by ``edgepp.join(token=...)``, until `edgepp revoke` withdraws it.

        Raises:
            EdgeppError: the token cannot be stored.
        """
        return str((await self._call("token"))["token"])

    async def drain(self, node: str, *, undo: bool = False) -> None:
        """Move the layers of a node to the others, and wait until the cluster answers without it.

        The node gets no layers until ``undo``, or until it is started again. A drain that nobody awaits goes on.

        Args:
            node: The name of the node, its id, or the first four or more digits of the id.
            undo: Let the node run layers again; does not wait.

        Raises:
            EdgeppError: no present node has this name or id, or the other nodes cannot hold its layers.
        """
        told = await self.begin_drain(node, undo=undo)
        while not undo and told["layers"]:
            layers = {one["node"]: one["layers"] for one in self.status["nodes"]}
            if not layers.get(told["node"]) and self.status["state"] == "ready":
                return
            await asyncio.sleep(_CHANGE_LOOK_S)

    async def begin_drain(self, node: str, *, undo: bool = False) -> Mapping[str, Any]:
        """Begin a drain, or with ``undo`` end one, and return at once with the ``layers`` that the node has now.

        Raises:
            EdgeppError: no present node has this name or id, or the other nodes cannot hold its layers.
        """
        return await self._call("drain", {"node": node, "undo": undo})

    async def _call(self, verb: Verb, arguments: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
        def call(client: CoordinatorClient) -> Mapping[str, Any]:
            with client:
                return client.call(verb, arguments)

        service = self._service
        return await asyncio.to_thread(lambda: call(service.connect()))


def local_owner(name: str) -> str:
    """The owner of requests of ``name`` in this process; it has a space, so no node's key can be equal to it."""
    return f"api: {name}"
