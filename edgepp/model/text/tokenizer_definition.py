"""A model folder's tokenizer as one definition, whatever files it comes in. Runs in ``text_process`` alone.

transformers reads the folder: files beside or in place of ``tokenizer.json`` (``tokenizer.model``, ``vocab.json``,
``tokenizer_config.json``) are the model's, so a limited process pays for what they cost.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

FILLER = "\U000f0000no token "
"""Begins the name of an id without a token."""
_LARGEST_ID = 1 << 22


def import_reader() -> None:
    """Import transformers, which takes a second or more, and keep it from the network."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import transformers.models.auto.tokenization_auto  # noqa: F401 - the part that takes long


def read_definition(folder: Path) -> dict[str, Any]:
    """What the tokenizer in ``folder`` is.

    ``definition`` is the text of a ``tokenizer.json`` without padding and truncation; ``template`` the chat template or
    None; ``bos`` the text of that token or None; ``eos`` an id or None; ``special`` the special tokens by their roles.

    Raises:
        Exception: what transformers raises for a damaged tokenizer, or one that wants to run code of its own.
    """
    from transformers import AutoTokenizer

    inner = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if not hasattr(inner, "backend_tokenizer"):
        raise ValueError(f"it is of a kind that cannot be used: {type(inner).__name__}")
    if (file := folder / "tokenizer.json").is_file():
        _keep_ids(inner, file.read_text(encoding="utf-8"))
    try:
        template = inner.get_chat_template() if inner.chat_template else None
    except ValueError:  # several templates, and none that is the default
        template = None
    backend = inner.backend_tokenizer
    added = {one.content for one in backend.get_added_tokens_decoder().values()}
    if backend.get_vocab(with_added_tokens=False).keys() <= added:  # the library makes one of nothing, too
        raise ValueError("its files hold no vocabulary")
    backend.no_padding()
    backend.no_truncation()
    return {
        "definition": backend.to_str(),
        "template": template,
        "bos": inner.bos_token,
        "eos": inner.eos_token_id,
        "special": {key: str(value) for key, value in inner.special_tokens_map.items()},
    }


def _keep_ids(inner: Any, stated: str) -> None:
    """Give added tokens the ids that the file states; the library numbers them again, maybe over another token."""
    wanted = {one["content"]: one["id"] for one in json.loads(stated).get("added_tokens", ())}
    backend = inner.backend_tokenizer
    if all(backend.token_to_id(text) == token for text, token in wanted.items()):
        return
    if max(wanted.values()) > _LARGEST_ID:
        raise ValueError(f"an added token has the id {max(wanted.values())}")
    form = json.loads(backend.to_str())
    vocabulary = form["model"]["vocab"]
    if isinstance(vocabulary, dict):
        vocabulary |= wanted
    else:  # ids are places in a list
        names = {token: text for text, token in wanted.items()}
        lowest = min(score for _, score in vocabulary)
        places = range(len(vocabulary), max(wanted.values()) + 1)
        vocabulary += [[names.get(place, f"{FILLER}{place}"), lowest] for place in places]
    for one in form["added_tokens"]:
        one["id"] = wanted.get(one["content"], one["id"])
    inner._tokenizer = type(backend).from_str(json.dumps(form))
