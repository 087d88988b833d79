"""A cluster that this program coordinates, with the stages of this machine."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from edgepp.coordinator.client import CoordinatorClient
from edgepp.coordinator.composition_root import PORT, CoordinatorService, ServeOptions
from edgepp.coordinator.live_answer import PIPELINE_WAIT_S, OnEnded
from edgepp.coordinator.model_change import ModelChange
from edgepp.coordinator.status import HttpAddress
from edgepp.engine.frontend import ModelFrontend
from edgepp.engine.request import GenerateOptions
from edgepp.layers import LayerRange
from edgepp.node.resources import parse_bytes
from edgepp.placement.types import Policy
from edgepp.python_api.answer import Answer, Begun
from edgepp.python_api.background_service import Background
from edgepp.python_api.question import Question, conversation_or_raw
from edgepp.wire.address import Address
from edgepp.wire.field_types import Verb

_CHANGE_LOOK_S = 0.1


class ServedCluster(Background[CoordinatorService]):
    """A cluster that this program coordinates. Use it in an ``async with`` statement.

    ``edgepp.connect`` and `edgepp chat` reach it, here and on any machine that joined.
    """

    def __init__(self, options: ServeOptions) -> None:
        super().__init__(lambda on_event, progress, given_up: CoordinatorService(options, on_event, progress, given_up))

    @property
    def address(self) -> str:
        """Where nodes and chats on this machine reach the coordinator, as ``HOST:PORT``."""
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
        """What answers wait for, such as machines that are away; empty while the cluster can answer."""
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
    ) -> Answer:
        """An answer to ``prompt``, which begins when it is read; without the way over the cluster's socket.

        Args:
            prompt: A question; a conversation, or its messages; or token ids.
            options: Length, sampling and constraint; greedy and unconstrained by default.
            raw: Send a text unchanged, without the chat template of the model.
            owner: Who asks, such as the name of an API key: for equal shares, and for the reuse of earlier prompts.
            wait_s: Seconds to wait until the cluster can answer.
            encoded_by: The ``frontend`` whose tokenizer made a prompt of token ids; another model refuses the prompt.

        Raises:
            UsageError: ``raw`` with a conversation.
        """
        sent = conversation_or_raw(prompt, raw=raw)
        service = self._service

        @contextmanager
        def begin() -> Iterator[Begun]:
            answers = service.coordinator.live_answers
            with answers.asking(local_owner(owner), sent, options or GenerateOptions(), wait_s, encoded_by) as live:
                yield Begun(live, live.cancel, lambda: "" if live.prompt_tokens else service.coordinator.reason)

        return Answer(begin)

    def observe(self, on_ended: OnEnded) -> None:
        """Have ``on_ended`` called with each answer that has ended, whoever asked, in whatever thread."""
        self._service.coordinator.live_answers.observers.append(on_ended)

    def tell_http(self, http: HttpAddress | None) -> None:
        """Have the status tell where the HTTP server of this program listens; None for no server."""
        self._service.coordinator.tell_http(http)

    async def load(self, model: str, on_change: Callable[[ModelChange], None] = lambda _: None) -> None:
        """Change the model while the cluster runs: answers under way end first, and new questions wait.

        ``on_change`` is called ten times per second with how far it is. A change that nobody awaits goes on.

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
        return str((await self._call("invite"))["code"])

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
            EdgeppError: no present node is called so, or the others cannot hold its layers.
        """
        told = await self._call("drain", {"node": node, "undo": undo})
        while not undo and told["layers"]:
            layers = {one["node"]: one["layers"] for one in self.status["nodes"]}
            if not layers.get(told["node"]) and self.status["state"] == "ready":
                return
            await asyncio.sleep(_CHANGE_LOOK_S)

    async def _call(self, verb: Verb, arguments: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
        def call(client: CoordinatorClient) -> Mapping[str, Any]:
            with client:
                return client.call(verb, arguments)

        service = self._service
        return await asyncio.to_thread(lambda: call(service.connect()))


def local_owner(name: str) -> str:
    """The owner of what ``name`` asks in this process; no node's key, which has no space, can be equal to it."""
    return f"api: {name}"


def serve(
    model: str | os.PathLike[str] = ServeOptions.model,
    *,
    listen: str | None = None,
    stages: int = ServeOptions.stages,
    layers: str | None = None,
    memory: int | str | None = None,
    policy: Policy = ServeOptions.policy,
    context: int = ServeOptions.context,
    max_sequences: int = ServeOptions.max_sequences,
    backend: str = ServeOptions.backend,
    threads: int | None = None,
    exact: bool = False,
    kv_bits: int | None = None,
    speculate: str = ServeOptions.speculate,
    keep_copies: int = ServeOptions.keep_copies,
) -> ServedCluster:
    """Coordinate a cluster from this program, like `edgepp serve`.

    Args:
        model: A name such as ``smollm2-135m``, a Hugging Face repository, or a folder.
        listen: ``HOST:PORT`` at which the coordinator listens; default: every address and port 5700.
        stages: Number of stage processes on this machine; 0 only coordinates.
        layers: First and last layer that this machine runs, like ``0-14``; default: planned.
        memory: Memory limit of the model on this machine, in bytes or like ``8GB``; default: all free memory.
        policy: ``memory`` divides layers in proportion to memory; ``speed`` for the fastest single answer;
            ``throughput`` for most tokens per second of many answers.
        context: Tokens of the longest conversation to reserve memory for.
        max_sequences: Number of such conversations at a time.
        backend: ``auto``, ``mlx`` or ``onnx``.
        threads: Compute threads on this machine; default: all cores.
        exact: Float32 arithmetic on every node, so that tokens do not depend on the plan; slower.
        kv_bits: Bits per key and value in the KV caches, 8 or 4; None for unquantized floats.
        speculate: How tokens are guessed: ``lookup`` (from the text so far), the name of a small model, or ``off``.
        keep_copies: Copies of each stage's keys and values on another node, 0 or 1; answers survive a lost node with
            them bit for bit, for twice the memory of conversations.

    Raises:
        UsageError: an option is not valid, or two options exclude each other.
    """
    return ServedCluster(
        ServeOptions(
            model=os.fspath(model),
            listen=Address.parse(listen) if listen else Address("*", PORT),
            stages=stages,
            pinned=LayerRange.parse(layers) if layers else None,
            memory=parse_bytes(memory) if isinstance(memory, str) else memory,
            policy=policy,
            context=context,
            max_sequences=max_sequences,
            backend=backend,
            threads=threads,
            exact=exact,
            kv_bits=kv_bits,
            speculate=speculate,
            keep_copies=keep_copies,
        )
    )
