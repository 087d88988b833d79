"""A model's first layers as a model of its own, with the same tokens: a small model that guesses for the whole one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mlx.core as mx

from edgepp.model.weights.checkpoint import layer_of


def truncated(folder: Path, target: Path, layers: int) -> Path:
    """A copy of the checkpoint in ``folder`` with its first ``layers`` decoder layers alone, in ``target``."""
    target.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        if (folder / name).is_file():
            shutil.copy(folder / name, target)
    config = json.loads((folder / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | {"num_hidden_layers": layers}))
    tensors = mx.load(str(folder / "model.safetensors"))
    assert isinstance(tensors, dict)
    kept = {name: tensor for name, tensor in tensors.items() if (at := layer_of(name)) is None or at < layers}
    mx.save_safetensors(str(target / "model.safetensors"), kept, {"format": "mlx"})
    return target
