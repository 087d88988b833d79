"""Interface of the cluster for the APIs, without its sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from edgepp.coordinator.ended_answer import OnEnded
from edgepp.http_api.generation import GenerationEvent, GenerationRequest
from edgepp.model.text.conversation import Prompt
from edgepp.python_api.served_cluster import Invitation
from edgepp.tool_calls.tool_use import ToolUse


@dataclass(frozen=True)
class ServedModel:
    """The model that the cluster runs, or loads."""

    name: str
    """The id that clients see first: the name that `edgepp serve` was given."""
    names: tuple[str, ...]
    """All names by which clients may ask for the model, ``name`` first: card, repository, ``name:latest``, aliases."""
    family: str
    """The architecture, such as ``llama``."""
    context: int
    """Tokens that prompt and answer may have together, as this cluster serves it."""
    trained_context: int
    """Context in tokens for which the model was trained."""
    num_parameters: int
    hidden_size: int
    size_bytes: int
    quantization: str
    """Ollama's name of the quantisation, such as ``Q4_0`` or ``F16``."""
    digest: str
    """Hexadecimal SHA-256 of the model's fingerprint."""
    created_s: int
    """Time at which the model was first served, in seconds since 1970."""
    template: str
    supports_tools: bool
    thinks: bool
    state: Literal["loaded", "loading"]
    sampling: Mapping[str, float] = field(default_factory=dict)
    """Recommended sampling options of its makers: ``temperature``, ``top_p``, ``top_k``, ``repetition_penalty``."""


class ModelService(Protocol):
    """The model of a cluster, for the files of the APIs."""

    async def prepare(self) -> None:
        """Gather the facts about the model, in a thread, unless they are known; each request begins with this.

        Errors are raised by the method that needs the facts.
        """

    @property
    def model(self) -> ServedModel:
        """The model that is served."""

    def served(self, name: str | None) -> ServedModel:
        """The served model, if ``name`` is one of its names, or None or empty.

        Raises:
            RequestError: no such model is served; the sentence says which one is.
        """

    def generate(self, request: GenerationRequest) -> AsyncIterator[GenerationEvent]:
        """The events of the answer. Closing the iterator cancels the answer on every stage.

        Raises:
            RequestError: the request cannot be answered, or the answer ended early.
        """

    async def encode(self, prompt: Prompt, tool_use: ToolUse | None = None, owner: str = "") -> list[int]:
        """The token ids of exactly the prompt that ``generate`` would prefill.

        Raises:
            RequestError: the prompt cannot be encoded, or is much longer than the context.
        """

    async def decode(self, token_ids: Sequence[int], owner: str = "") -> str:
        """The text of token ids.

        Raises:
            RequestError: an id is no token of the model.
        """

    async def load(self, model: str) -> None:
        """Run another model, for everybody; answers under way end first. Returns when the model answers.

        Raises:
            RequestError: there is no such model, or it does not fit; the cluster goes on with the former one.
        """

    async def invite(self) -> Invitation:
        """A new invitation for one machine.

        Raises:
            RequestError: too many invitations are open, or the pairing port is in use.
        """

    async def drain(self, node: str, *, undo: bool) -> Mapping[str, Any]:
        """Begin to move a node's layers to others, or with ``undo`` let the node run layers again.

        Returns the ``name`` of the node, and the ``layers`` that it has now.

        Raises:
            RequestError: no present node has this name or id, or the other nodes cannot hold its layers.
        """

    def observe(self, on_ended: OnEnded) -> None:
        """Register ``on_ended``, which is called with each answer that has ended, of any asker and in any thread."""

    def status(self) -> Mapping[str, Any]:
        """The state of the cluster, as `edgepp status --json` prints it."""
