"""Facts about the model of a cluster that the APIs show: names, sizes, quantisation and digest."""

from __future__ import annotations

import hashlib
import time

from edgepp.coordinator.json_codec import encode_sampling
from edgepp.engine.frontend import ModelFrontend
from edgepp.http_api.model_service import ServedModel
from edgepp.http_api.model_text import ModelText
from edgepp.model.catalogue.cards import Card, Shape
from edgepp.model.catalogue.source import HubRepository, LocalFolder, Wheel, resolve
from edgepp.model.config.quantisation import Quantisation
from edgepp.model.shape import shape_of

LATEST_TAG = ":latest"
"""The tag that Ollama's clients add to a name without one."""


def describe_model(text: ModelText, aliases: tuple[str, ...], context: int) -> ServedModel:
    """The facts of the model of ``text``, which is also called by each of ``aliases``, as one that loads.

    ``context`` is the number of tokens that prompt and answer may have together.
    """
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
    return [*names, *(f"{name}{LATEST_TAG}" for name in names if ":" not in name and "@" not in name)]


def plain_name(name: str) -> str:
    """A model's name without the tag ``latest``, in lower case: names that are equal so mean the same model."""
    return name.casefold().removesuffix(LATEST_TAG)


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
