"""Checkpoints of any shape with random weights, in mlx-lm format, for tests and for benchmarks without a download.

Tensors are created and written one by one, so a model may be much larger than memory. The numbers of a tensor depend
only on the seed and its name, not on the number of files.
"""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from edgepp.errors import ModelError, UsageError
from edgepp.model.catalogue.cards import DTYPE_BYTES, Shape

TINY = Shape(
    layers=4, heads=4, kv_heads=2, head_size=16, hidden=64, ffn=128, vocabulary=320, tied=True, context=512,
    dtype="float32",
)  # fmt: skip
"""About 0.2 million weights, computed in milliseconds; ``dataclasses.replace`` gives variants."""

LLAMA3_ROPE: Mapping[str, Any] = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
"""The ``rope_scaling`` of Llama 3.2."""

FAMILIES: Mapping[str, str] = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
"""Class name in the configuration of each family of which checkpoints can be made."""

_STORED = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "uint32": "U32"}
_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_CHAT = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@dataclass(frozen=True)
class _Tensor:
    """A tensor to be written; ``source`` is the module or vector whose values the tensor stores."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    source: str

    @property
    def nbytes(self) -> int:
        size_bytes = 4 if self.dtype == "uint32" else DTYPE_BYTES[self.dtype]
        for n in self.shape:
            size_bytes *= n
        return size_bytes


def make_checkpoint(
    path: Path,
    shape: Shape = TINY,
    *,
    seed: int = 0,
    files: int = 1,
    tokenizer: Path | None = None,
    rope_theta: float = 10000.0,
    rope_scaling: Mapping[str, Any] | None = None,
) -> Path:
    """Write a checkpoint of ``shape`` into the folder ``path`` and return the folder.

    Weights are normally distributed with standard deviation 1/√fan-in, so that activations keep their size through any
    number of layers. ``files`` is the number of safetensors files that share the layers; more than one have an index.
    ``tokenizer`` is a folder whose tokenizer is copied; without it, a byte-level tokenizer with a chat template is
    made.

    Raises:
        ModelError: the family is unknown, the group size does not divide a row, or ``tokenizer`` has no tokenizer.
        UsageError: the vocabulary is too small for bytes, or there are more files than layers.
    """
    _check(shape, files)
    path.mkdir(parents=True, exist_ok=True)
    parts = [list(_file_tensors(shape, part, files)) for part in range(files)]
    weight_map: dict[str, str] = {}
    for part, tensors in enumerate(parts):
        name = "model.safetensors" if files == 1 else f"model-{part + 1:05d}-of-{files:05d}.safetensors"
        _write_file(path / name, tensors, shape, seed)
        weight_map.update((tensor.name, name) for tensor in tensors)
    if files > 1:
        total = sum(tensor.nbytes for tensors in parts for tensor in tensors)
        _write_json(
            path / "model.safetensors.index.json",
            {"metadata": {"total_size": total}, "weight_map": weight_map},
        )
    _write_json(path / "config.json", _config(shape, rope_theta, rope_scaling))
    if tokenizer is None:
        _make_tokenizer(path, shape)
    else:
        _copy_tokenizer(tokenizer, path)
    return path


def _check(shape: Shape, files: int) -> None:
    if shape.family not in FAMILIES:
        raise ModelError(f"no checkpoint of family '{shape.family}' can be made", f"use one of {', '.join(FAMILIES)}")
    if not 1 <= files <= shape.layers:
        raise UsageError(f"{shape.layers} layers cannot be spread over {files} files")
    columns = {shape.hidden, *(size[1] for size in shape.layer_matrices().values())}
    if shape.bits is not None and (shape.group_size is None or any(n % shape.group_size for n in columns)):
        raise ModelError(f"group size {shape.group_size} does not divide rows of {', '.join(map(str, columns))}")


def _file_tensors(shape: Shape, part: int, files: int) -> Iterator[_Tensor]:
    if part == 0:
        size = (shape.vocabulary, shape.hidden)
        yield from _matrix("model.embed_tokens", size, shape, shape.embedding_bits or shape.bits)
    for layer in range(shape.layers * part // files, shape.layers * (part + 1) // files):
        prefix = f"model.layers.{layer}."
        for name, size in shape.layer_matrices().items():
            yield from _matrix(prefix + name, size, shape, shape.bits)
        for name, length in shape.layer_vectors().items():
            yield _Tensor(prefix + name, shape.dtype, (length,), prefix + name)
    if part == files - 1:
        yield _Tensor("model.norm.weight", shape.dtype, (shape.hidden,), "model.norm.weight")
        if not shape.tied:
            yield from _matrix("lm_head", (shape.vocabulary, shape.hidden), shape, shape.bits)


def _matrix(module: str, size: tuple[int, int], shape: Shape, bits: int | None) -> Iterator[_Tensor]:
    rows, columns = size
    if bits is None or shape.group_size is None:
        yield _Tensor(f"{module}.weight", shape.dtype, size, module)
        return
    groups = (rows, columns // shape.group_size)
    yield _Tensor(f"{module}.weight", "uint32", (rows, columns * bits // 32), module)
    yield _Tensor(f"{module}.scales", shape.dtype, groups, module)
    yield _Tensor(f"{module}.biases", shape.dtype, groups, module)


def _write_file(file: Path, tensors: list[_Tensor], shape: Shape, seed: int) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
    end = 0
    for tensor in tensors:
        header[tensor.name] = {
            "dtype": _STORED[tensor.dtype],
            "shape": tensor.shape,
            "data_offsets": [end, end + tensor.nbytes],
        }
        end += tensor.nbytes
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    values: dict[str, Any] = {}
    source = ""
    with file.open("wb") as stream:
        stream.write(len(raw).to_bytes(8, "little") + raw)
        for tensor in tensors:
            if tensor.source != source:
                source, values = tensor.source, _values(tensor.source, shape, seed)
            stream.write(_bytes(values[tensor.name]))


def _values(source: str, shape: Shape, seed: int) -> dict[str, Any]:
    """The tensors of ``source``: one vector, or a matrix with its scales and biases."""
    key = mx.random.key(zlib.crc32(f"{seed} {source}".encode()))
    dtype = getattr(mx, shape.dtype)
    inner = source.split(".", 3)[-1] if source.startswith("model.layers.") else source
    if source.endswith((".weight", ".bias")):
        mean = 1.0 if source.endswith(".weight") else 0.0
        length = shape.layer_vectors().get(inner, shape.hidden)
        return {source: (mean + 0.1 * mx.random.normal((length,), key=key)).astype(dtype)}
    rows, columns = shape.layer_matrices().get(inner, (shape.vocabulary, shape.hidden))
    weight = mx.random.normal((rows, columns), scale=columns**-0.5, key=key)
    bits = (shape.embedding_bits or shape.bits) if source == "model.embed_tokens" else shape.bits
    if bits is None or shape.group_size is None:
        return {f"{source}.weight": weight.astype(dtype)}
    packed, scales, biases = mx.quantize(weight, group_size=shape.group_size, bits=bits)
    return {
        f"{source}.weight": packed,
        f"{source}.scales": scales.astype(dtype),
        f"{source}.biases": biases.astype(dtype),
    }


def _bytes(array: Any) -> memoryview:
    """The bytes of the array; bfloat16 is viewed as uint16, since the buffer protocol has no bfloat16."""
    plain: Any = mx.contiguous(array.view(mx.uint16) if array.dtype == mx.bfloat16 else array)
    return memoryview(plain).cast("B")


def _config(shape: Shape, rope_theta: float, rope_scaling: Mapping[str, Any] | None) -> dict[str, Any]:
    config: dict[str, Any] = {
        "architectures": [FAMILIES[shape.family]],
        "model_type": shape.family,
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "intermediate_size": shape.ffn,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_size,
        "rms_norm_eps": 1e-5,
        "vocab_size": shape.vocabulary,
        "rope_theta": rope_theta,
        "max_position_embeddings": shape.context,
        "tie_word_embeddings": shape.tied,
        "hidden_act": "silu",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": shape.dtype,
    }
    if rope_scaling is not None:
        config["rope_scaling"] = dict(rope_scaling)
    if shape.bits is not None:
        quantisation: dict[str, Any] = {"group_size": shape.group_size, "bits": shape.bits}
        if shape.embedding_bits not in (None, shape.bits):
            quantisation["model.embed_tokens"] = {
                "group_size": shape.group_size,
                "bits": shape.embedding_bits,
            }
        config["quantization"] = config["quantization_config"] = quantisation
    return config


def _make_tokenizer(path: Path, shape: Shape) -> None:
    """Write a tokenizer of three special tokens, one token per byte, and fillers for the rest of the vocabulary."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*_SPECIAL, *alphabet]
    if shape.vocabulary < len(tokens):
        raise UsageError(f"a byte-level tokenizer needs a vocabulary of {len(tokens)}, not {shape.vocabulary}")
    tokens += [f"Ġfiller{n}" for n in range(len(tokens), shape.vocabulary)]
    tokenizer = Tokenizer(models.BPE({token: n for n, token in enumerate(tokens)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in _SPECIAL])
    tokenizer.save(str(path / "tokenizer.json"))
    _write_json(
        path / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": shape.context,
            "clean_up_tokenization_spaces": False,
            "bos_token": "<|im_start|>",
            "eos_token": "<|im_end|>",
            "chat_template": _CHAT,
        },
    )


def _copy_tokenizer(source: Path, path: Path) -> None:
    files = [p for p in source.iterdir() if p.name.startswith(("tokenizer", "special_tokens", "chat_template"))]
    if not files:
        raise ModelError(f"{source} holds no tokenizer")
    for file in files:
        shutil.copyfile(file, path / file.name)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")
