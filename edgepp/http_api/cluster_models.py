"""The ``ModelService`` of a cluster that this process coordinates: its model by all its names, answers, and text."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import time
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from edgepp.coordinator.json_codec import encode_sampling
from edgepp.coordinator.live_answer import OnEnded
from edgepp.engine.frontend import ModelFrontend
from edgepp.engine.request import GenerateOptions
from edgepp.errors import EdgeppError, ModelError, PlanError, UsageError
from edgepp.http_api.failures import RequestError
from edgepp.http_api.generation import IDLE_S, GenerationEvent, GenerationRequest
from edgepp.http_api.generator import LOAD_WAIT_S, LOADING_RETRY_S, Generator, request_error
from edgepp.http_api.model_service import ServedModel
from edgepp.http_api.model_text import ModelText
from edgepp.model.catalogue.cards import Card, Shape
from edgepp.model.catalogue.source import HubRepository, LocalFolder, Wheel, resolve
from edgepp.model.config.quantisation import Quantisation
from edgepp.model.shape import shape_of
from edgepp.model.text.conversation import Prompt, TokenIds
from edgepp.python_api.answer import Answer
from edgepp.python_api.serving import ServedCluster
from edgepp.tool_calls.tool_use import ToolUse

log = logging.getLogger("edgepp.http_api")

_NAME = re.compile(r"[\w][\w./:@+-]{0,199}")
"""What a client may ask the catalogue for; a path, which would be looked up on this disk, does not match."""
_LATEST = ":latest"
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
        """Make what is known of the model that the cluster runs now, in a thread, unless that is done."""
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
        if not name or _plain(name) in {_plain(one) for one in model.names} or self._means(name):
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
            RequestError: there is no such model, or it does not fit; the former one goes on.
        """
        name = model.removesuffix(_LATEST)
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

    def observe(self, on_ended: OnEnded) -> None:
        """Have ``on_ended`` called with each answer that has ended, whoever asked, in whatever thread."""
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
        """What answers wait for; empty while the cluster can answer."""
        return self._cluster.reason

    @property
    def is_held(self) -> bool:
        """Whether requests wait until the model has changed."""
        return self._cluster.is_held

    @property
    def retry_after_s(self) -> float:
        """When a cluster that loads may be ready."""
        loading = self.status().get("loading") or {}
        eta_s = loading.get("eta_seconds")
        return LOADING_RETRY_S if eta_s is None else min(max(1.0, eta_s), _MAX_RETRY_S)

    def ask(self, text: ModelText, prompt: TokenIds, options: GenerateOptions, owner: str, wait_s: float) -> Answer:
        """An answer to a prompt that ``text`` has encoded."""
        return self._cluster.ask(prompt, options, owner=owner, wait_s=wait_s, encoded_by=text.frontend)

    def _now(self) -> _Current:
        """What is known of the model that the cluster runs now."""
        frontend, current = self._cluster.frontend, self._current
        if current is None or current.text.frontend is not frontend:
            text = ModelText.of(frontend)
            current = self._current = _Current(text, _served_model(text, self._aliases, self.context))
        return current

    @property
    def _is_prepared(self) -> bool:
        return self._current is not None and self._current.text.frontend is self._cluster.frontend

    def _means(self, name: str) -> bool:
        """Whether the catalogue resolves ``name``, such as ``llama3.2:3b``, to the model of this cluster."""
        name = name.removesuffix(_LATEST)
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


def _served_model(text: ModelText, aliases: tuple[str, ...], context: int) -> ServedModel:
    frontend = text.frontend
    checkpoint, settings = frontend.checkpoint, frontend.checkpoint.settings
    shape = shape_of(frontend.model, checkpoint)
    fingerprint = f"{checkpoint.fingerprint} {checkpoint.commit}".strip()
    return ServedModel(
        name=frontend.model,
        names=tuple(dict.fromkeys((*_names(frontend), *aliases))),
        family=checkpoint.family,
        context=context,
        trained_context=checkpoint.context,
        num_parameters=_num_parameters(shape),
        hidden_size=checkpoint.hidden_size,
        size_bytes=_size_bytes(shape),
        quantization=_quantization(settings.quantisations.usual, shape.dtype),
        digest=hashlib.sha256(fingerprint.encode()).hexdigest(),
        created_s=int(time.time()),
        template=frontend.tokenizer.template,
        supports_tools=bool(frontend.tokenizer.template),
        thinks=text.form.thinks,
        state="loading",
        sampling=encode_sampling(frontend.sampling),
    )


def _names(frontend: ModelFrontend) -> list[str]:
    """The names of a model, as given first: its card's, its repository's, and each with the tag ``latest``."""
    match resolve(frontend.model):
        case HubRepository(name=repository, card=card):
            names = [frontend.model, *([card.name] if card else []), repository]
        case Wheel(card=card):
            names = [frontend.model, card.name]
        case LocalFolder(path=path):
            names = [frontend.model, path.resolve().name]
    return [*names, *(f"{name}{_LATEST}" for name in names if ":" not in name and "@" not in name)]


def _plain(name: str) -> str:
    return name.removesuffix(_LATEST).casefold()


def _num_parameters(shape: Shape) -> int:
    return shape.num_weights() + shape.layers * sum(shape.layer_vectors().values()) + shape.hidden


def _size_bytes(shape: Shape) -> int:
    if isinstance(shape, Card):
        return shape.bytes_total
    return shape.layers * shape.layer_bytes() + shape.embedding_bytes() + shape.head_bytes()


_FLOATS = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}
_BLOCKS = {2: "Q2_K", 3: "Q3_K", 4: "Q4_1", 5: "Q5_1", 6: "Q6_K", 8: "Q8_0"}
"""Names in GGUF of what comes nearest to MLX's affine quantisation, with a scale and a bias per group."""


def _quantization(usual: Quantisation | None, dtype: str) -> str:
    if usual is None:
        return _FLOATS.get(dtype, "F16")
    return _BLOCKS.get(usual.bits, f"Q{usual.bits}") if usual.mode == "affine" else usual.mode.upper()
