"""Write a checkpoint in mlx-lm format as a GGUF file, so that llama.cpp runs the same weights.

    python -m bench.to_gguf smollm2-135m smollm2.gguf

4-bit weights in groups of 32 or more become Q4_1 blocks, and symmetric 8-bit weights Q8_0 blocks, without rounding.
Unquantised weights are rounded to Q8_0, like in edgepp's CPU backend. ``--type q4_0`` rounds 4-bit weights to Q4_0, for
which llama.cpp has its fastest kernels. The file has no tokenizer.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bench.toolkit.script import Result, ScriptArguments, script
from edgepp.backend.onnx.architecture import Architecture, read_architecture
from edgepp.backend.onnx.weights import rows_of, unpack
from edgepp.errors import EdgeppError, ModelError
from edgepp.model.fetch import fetch
from edgepp.model.weights.checkpoint import Array, Checkpoint

TYPES = ("q4_1", "q4_0")
_BLOCK = 32  # weights of one block, in both formats
_ROWS = 4096  # rows rounded at a time
_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def gguf_name(module: str) -> str:
    """``model.layers.3.self_attn.q_proj`` becomes ``blk.3.attn_q``."""
    layer = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", module)
    return f"blk.{layer[1]}.{_NAMES[layer[2]]}" if layer else _NAMES[module]


def q4_1(codes: Array, scales: Array, biases: Array) -> Array:
    """Q4_1 blocks (N, K / 32 * 20) of MLX's codes (N, K) and its scales and biases (N, K / group_size)."""
    rows, columns = codes.shape
    halves = codes.reshape(rows, columns // _BLOCK, 2, _BLOCK // 2)
    return _blocks(_per_block(scales, columns), _per_block(biases, columns), halves[:, :, 0] | halves[:, :, 1] << 4)


def q8_0(codes: Array, scales: Array) -> Array:
    """Q8_0 blocks (N, K / 32 * 34) of MLX's codes (N, K) and scales (N, K / group_size); biases must be -128 scales."""
    rows, columns = codes.shape
    blocks = codes.reshape(rows, columns // _BLOCK, _BLOCK) ^ 0x80  # as int8: the code minus 128
    return _blocks(_per_block(scales, columns), blocks)


def _per_block(values: Array, columns: int) -> Array:
    """The value of each group, repeated for each block of the group, as the two bytes of a float16."""
    repeated = np.repeat(values.astype(np.float16), columns // _BLOCK // values.shape[1], axis=1)
    return repeated[..., None].view(np.uint8)


def _blocks(*fields: Array) -> Array:
    return np.concatenate(fields, axis=-1).reshape(len(fields[0]), -1)


def interleaved(matrix: Array, heads: int) -> Array:
    """``matrix``, whose rows have the rotary halves of each head one after the other, in GGUF's interleaved order."""
    rows, columns = matrix.shape
    halves = matrix.reshape(heads, 2, rows // heads // 2, columns)
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows, columns)


class Converter:
    """Conversion of a checkpoint to a GGUF file."""

    def __init__(self, checkpoint: Checkpoint, kind: str) -> None:
        """``kind`` is the format of 4-bit weights, one of ``TYPES``.

        Raises:
            ModelError: the model is not one of llama.cpp's architecture "llama".
        """
        self._checkpoint = checkpoint
        self._kind = kind
        self._architecture: Architecture = read_architecture(checkpoint)
        if checkpoint.family != "llama" or self._architecture.biased:
            raise ModelError(f"{checkpoint.path.name} is not a plain llama", "give its GGUF file instead")

    def write(self, target: Path) -> None:
        """Write the file ``target``.

        Raises:
            EdgeppError: the gguf package is not installed, or GGUF has no equal format for the weights.
        """
        try:
            import gguf
        except ImportError:
            raise EdgeppError("the gguf package is not installed", "pip install gguf") from None
        writer = gguf.GGUFWriter(target, "llama")
        self._describe(writer)
        for name in self._checkpoint.tensors:
            module, _, part = name.rpartition(".")
            if part != "weight":
                continue
            if self._checkpoint.array(name).ndim == 1:
                writer.add_tensor(f"{gguf_name(module)}.weight", self._checkpoint.array(name).astype(np.float32))
            else:
                kind, blocks = self._matrix(module)
                writer.add_tensor(f"{gguf_name(module)}.weight", blocks, raw_dtype=gguf.GGMLQuantizationType[kind])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    def _describe(self, writer: object) -> None:
        import gguf

        assert isinstance(writer, gguf.GGUFWriter)
        arch, checkpoint = self._architecture, self._checkpoint
        writer.add_name(checkpoint.path.name)
        writer.add_vocab_size(checkpoint.vocab_size)
        writer.add_context_length(arch.context)
        writer.add_embedding_length(arch.hidden_size)
        writer.add_block_count(checkpoint.num_layers)
        writer.add_feed_forward_length(checkpoint.settings.ffn)
        writer.add_head_count(arch.heads)
        writer.add_head_count_kv(arch.kv_heads)
        writer.add_key_length(arch.head_dim)
        writer.add_value_length(arch.head_dim)
        writer.add_layer_norm_rms_eps(arch.epsilon)
        writer.add_rope_dimension_count(arch.head_dim)
        writer.add_rope_freq_base(arch.rope.base)
        writer.add_tokenizer_model("no_vocab")
        plain = arch.rope.base ** (np.arange(0, arch.head_dim, 2) / arch.head_dim)
        if arch.rope.kind != "default":
            writer.add_tensor("rope_freqs.weight", (arch.rope.periods() / plain).astype(np.float32))

    def _matrix(self, module: str) -> tuple[str, Array]:
        """The name of the GGUF type, and the blocks (N, bytes), of a matrix."""
        heads = {"q_proj": self._architecture.heads, "k_proj": self._architecture.kv_heads}.get(module.split(".")[-1])
        quantisation = self._checkpoint.quantisation(module)
        if quantisation is None:
            kind, blocks = "Q8_0", self._rounded(module, "Q8_0")
        elif quantisation.bits == 4 and self._kind == "q4_0":
            kind, blocks = "Q4_0", self._rounded(module, "Q4_0")
        else:
            kind, blocks = self._copied(module, quantisation.bits)
        return kind, blocks if heads is None else interleaved(blocks, heads)

    def _copied(self, module: str, bits: int) -> tuple[str, Array]:
        codes = unpack(self._checkpoint.array(f"{module}.weight"), bits)
        scales, biases = (self._checkpoint.array(f"{module}.{part}") for part in ("scales", "biases"))
        if bits == 4:
            return "Q4_1", q4_1(codes, scales, biases)
        if bits == 8 and np.array_equal(biases, -128 * scales):
            return "Q8_0", q8_0(codes, scales)
        raise ModelError(
            f"{module} with {bits} bits has no equal format in GGUF", "give a GGUF file of these weights instead"
        )

    def _rounded(self, module: str, kind: str) -> Array:
        import gguf

        rows = self._checkpoint.array(f"{module}.weight").shape[0]
        return np.concatenate(
            [
                gguf.quants.quantize(rows_of(self._checkpoint, module, part), gguf.GGMLQuantizationType[kind])
                for part in _slices(rows)
            ]
        )


def _slices(rows: int) -> Iterator[slice]:
    return (slice(start, start + _ROWS) for start in range(0, rows, _ROWS))


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = ScriptArguments(__doc__)
    parser.add_argument("model", help="a name, hub repository or folder")
    parser.add_argument("gguf", type=Path, help="file to write")
    parser.add_argument("--type", choices=TYPES, default="q4_1", help="format of 4-bit weights (%(default)s)")
    return parser.parse_args()


def measured(options: argparse.Namespace) -> Result:
    """Convert the model; returns the bytes of the file."""
    Converter(Checkpoint.open(fetch(options.model)), options.type).write(options.gguf)
    return {"bytes": options.gguf.stat().st_size}


def lines(result: Result) -> Iterator[str]:
    """The result for people."""
    yield f"{result['gguf']}: {result['bytes']} bytes"


if __name__ == "__main__":
    script("to_gguf", parse, measured, lines)
