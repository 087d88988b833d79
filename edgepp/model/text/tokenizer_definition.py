"""One definition of the tokenizer in a model folder; read only in the text process (``process``).

transformers reads the folder. The files besides or instead of ``tokenizer.json`` (``tokenizer.model``, ``vocab.json``,
``tokenizer_config.json``) come with the model, so they are read in the process that has limits.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

FILLER = "\U000f0000no token "
"""Prefix of the names of ids without a token."""
_MAX_TOKEN_ID = 1 << 22


def import_reader() -> None:
    """Import transformers, which takes a second or more, and keep it from the network."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import transformers.models.auto.tokenization_auto  # noqa: F401 - the slow part of the import


def read_definition(folder: Path) -> dict[str, Any]:
    """The tokenizer in ``folder`` as a dict.

    ``definition`` is the text of a ``tokenizer.json`` without padding and truncation, ``template`` the chat template or
    None, ``tool_template`` the chat template for conversations with tools, mostly the same, ``bos`` the text of the
    BOS token or None, ``eos`` an id or None, ``special`` the special tokens by role.

    Raises:
        Exception: from transformers, for a tokenizer that is damaged or wants to run code of its own.
    """
    from transformers import AutoTokenizer

    inner = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if not hasattr(inner, "backend_tokenizer"):
        raise ValueError(f"it is of a kind that cannot be used: {type(inner).__name__}")
    if (file := folder / "tokenizer.json").is_file():
        _keep_ids(inner, file.read_text(encoding="utf-8"))
    backend = inner.backend_tokenizer
    added = {one.content for one in backend.get_added_tokens_decoder().values()}
    if (
        backend.get_vocab(with_added_tokens=False).keys() <= added
    ):  # the library returns an empty tokenizer for no files
        raise ValueError("its files hold no vocabulary")
    backend.no_padding()
    backend.no_truncation()
    return {
        "definition": backend.to_str(),
        "template": _template(inner, None),
        "tool_template": _template(inner, []),
        "bos": inner.bos_token,
        "eos": inner.eos_token_id,
        "special": {key: str(value) for key, value in inner.special_tokens_map.items()},
    }


def _template(inner: Any, tools: list[Any] | None) -> str | None:
    """The chat template with or without tools, of a model that may have several by name."""
    try:
        return str(inner.get_chat_template(tools=tools)) if inner.chat_template else None
    except ValueError:  # several templates without a default
        return None


def _keep_ids(inner: Any, tokenizer_json: str) -> None:
    """Give added tokens the ids of the file; transformers renumbers them, and a new id may be that of another token."""
    wanted = {one["content"]: one["id"] for one in json.loads(tokenizer_json).get("added_tokens", ())}
    backend = inner.backend_tokenizer
    if all(backend.token_to_id(text) == token for text, token in wanted.items()):
        return
    if max(wanted.values()) > _MAX_TOKEN_ID:
        raise ValueError(f"an added token has the id {max(wanted.values())}")
    definition = json.loads(backend.to_str())
    vocabulary = definition["model"]["vocab"]
    if isinstance(vocabulary, dict):
        vocabulary |= wanted
    else:  # a list, whose indices are the ids
        names = {token: text for text, token in wanted.items()}
        lowest = min(score for _, score in vocabulary)
        indices = range(len(vocabulary), max(wanted.values()) + 1)
        vocabulary += [[names.get(index, f"{FILLER}{index}"), lowest] for index in indices]
    for one in definition["added_tokens"]:
        one["id"] = wanted.get(one["content"], one["id"])
    inner._tokenizer = type(backend).from_str(json.dumps(definition))
