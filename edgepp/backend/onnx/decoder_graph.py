"""The Llama family's decoder layers, and the final norm and output head, as ONNX graphs.

Hidden states are (B, T, D) inside the graph. Every residual sum is computed by the norm that follows it, even at
the first layer of a stage, where that norm adds zero: ONNX Runtime's norms with and without a sum differ in the last
bit, and a layer range must give the same numbers as one stage and as several.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from onnx import TensorProto

from edgepp.backend.onnx.architecture import Architecture
from edgepp.backend.onnx.graph_builder import NOTHING, GraphBuilder, Value
from edgepp.backend.onnx.kv_scales import scales
from edgepp.layer_range import LayerRange


class DecoderGraph:
    """Decoder layers: ``hidden`` (B, T, D) in, ``out`` (B, T, D) out, and each layer's keys and values.

    B or T is 1: several positions of one sequence, or the next position of several sequences. Other inputs: ``last``
    int32 (B,), the last position of each row; ``total`` int32 scalar, the largest ``last`` plus one; ``cos`` and
    ``sin`` (at least total, head_dim / 2); ``past.N.key`` and ``past.N.value`` (B, kv_heads, S, head_dim) of layer N
    with room for S positions, int8 where ``kv_bits`` is 8. Bind the outputs ``present.N.*`` to the same memory as
    ``past.N.*``.
    """

    def __init__(self, graph: GraphBuilder, architecture: Architecture, kv_bits: int | None = None) -> None:
        self._graph = graph
        self._kv_bits = kv_bits
        self._arch = architecture
        self._shape: list[int | str] = ["batch", "tokens", architecture.hidden_size]

    def build(self, layers: LayerRange, on_layer: Callable[[int], None]) -> None:
        """Add the layers to the graph; ``on_layer`` is called with the number of each layer that was added.

        Raises:
            ModelError: a tensor is absent, or shapes or dtypes of tensors do not fit each other.
        """
        g = self._graph
        self._add_positions()
        x = g.input("hidden", self._shape)
        delta = g.node("Sub", [x, x], [Value("zero")])
        for layer in range(layers.start, layers.stop):
            x, delta = self._attention_half(layer, x, delta)
            x, delta = self._mlp_half(layer, x, delta)
            on_layer(layer)
        g.output(g.add("out", x, delta), self._shape)

    def build_half(self, layer: int, *, attention: bool) -> tuple[str, str]:
        """Add one half of a layer, attention or MLP: ``hidden`` and ``delta`` in, two outputs, whose names it returns.

        ``delta`` (B, T, D) is the addition of the previous half to ``hidden``. The outputs are ``hidden + delta``, and
        the addition of this half to that sum, each (B, T, D).

        Raises:
            ModelError: a tensor is absent, or shapes or dtypes of tensors do not fit each other.
        """
        g = self._graph
        if attention:
            self._add_positions()
        x, delta = (g.input(name, self._shape) for name in ("hidden", "delta"))
        total, added = (self._attention_half if attention else self._mlp_half)(layer, x, delta)
        for value in (total, added):
            g.output(value, self._shape)
        return total.name, added.name

    def _add_positions(self) -> None:
        graph, half_head = self._graph, self._arch.head_dim // 2
        self._last = graph.input("last", ["batch"], TensorProto.INT32)
        self._total = graph.input("total", [], TensorProto.INT32)
        self._cos, self._sin = (graph.input(name, ["positions", half_head]) for name in ("cos", "sin"))

    def _attention_half(self, layer: int, x: Value, delta: Value) -> tuple[Value, Value]:
        """Attention of a layer: takes and returns ``x`` and the ``delta`` that the next norm adds to ``x``."""
        module = f"model.layers.{layer}"
        h, x = self._add_norm(f"{layer}.input", x, delta, f"{module}.input_layernorm")
        return x, self._attention(layer, h, f"{module}.self_attn")

    def _mlp_half(self, layer: int, x: Value, delta: Value) -> tuple[Value, Value]:
        """MLP of a layer: takes and returns ``x`` and the ``delta`` that the next norm adds to ``x``."""
        module = f"model.layers.{layer}"
        h, x = self._add_norm(f"{layer}.mlp", x, delta, f"{module}.post_attention_layernorm")
        return x, self._mlp(layer, h, f"{module}.mlp")

    def _add_norm(self, name: str, x: Value, delta: Value, module: str) -> tuple[Value, Value]:
        return self._graph.add_rms_norm(name, x, delta, module, self._arch.epsilon)

    def _attention(self, layer: int, x: Value, module: str) -> Value:
        qkv = self._linear(f"{layer}.qkv", x, module, "q_proj", "k_proj", "v_proj")
        heads = self._head_norms(layer, qkv, module) if self._arch.head_norms else (qkv, NOTHING, NOTHING)
        attended = self._grouped_query_attention(layer, heads)
        return self._linear(f"{layer}.o", attended, module, "o_proj")

    def _mlp(self, layer: int, x: Value, module: str) -> Value:
        gate = self._linear(f"{layer}.gate", x, module, "gate_proj")
        up = self._linear(f"{layer}.up", x, module, "up_proj")
        return self._linear(f"{layer}.down", self._graph.silu_times(f"{layer}.act", gate, up), module, "down_proj")

    def _linear(self, name: str, x: Value, parent: str, *projections: str) -> Value:
        bias = projections[0] in self._arch.biased
        return self._graph.linear(name, x, [f"{parent}.{projection}" for projection in projections], bias=bias)

    def _head_norms(self, layer: int, qkv: Value, module: str) -> tuple[Value, Value, Value]:
        """Queries, keys and values from their stacked projection; each query and key head is normalised."""
        g, arch = self._graph, self._arch
        widths = [arch.heads * arch.head_dim, arch.kv_heads * arch.head_dim, arch.kv_heads * arch.head_dim]
        sizes = g.constant("qkv_widths", np.array(widths, np.int64))
        q, k, v = (Value(f"{layer}.{part}") for part in "qkv")
        g.node("Split", [qkv, sizes], [q, k, v], axis=-1)
        return self._head_norm(q, f"{module}.q_norm"), self._head_norm(k, f"{module}.k_norm"), v

    def _head_norm(self, x: Value, module: str) -> Value:
        g, head_dim = self._graph, self._arch.head_dim
        apart = g.constant("heads_apart", np.array([0, 0, -1, head_dim], np.int64))
        together = g.constant("heads_together", np.array([0, 0, -1], np.int64))
        heads = g.node("Reshape", [x, apart], [Value(f"{x.name}.heads")])
        normed = g.rms_norm(f"{x.name}.norm", heads, module, self._arch.epsilon)
        return g.node("Reshape", [normed, together], [Value(f"{x.name}.normed")])

    def _grouped_query_attention(self, layer: int, heads: tuple[Value, Value, Value]) -> Value:
        """Rotate queries and keys, append keys and values to the cache, and attend causally."""
        g, arch = self._graph, self._arch
        shape: list[int | str] = ["batch", arch.kv_heads, "positions", arch.head_dim]
        dtype = TensorProto.FLOAT if self._kv_bits is None else TensorProto.INT8
        past = [g.input(f"past.{layer}.{part}", shape, dtype) for part in ("key", "value")]
        present = [Value(f"present.{layer}.{part}") for part in ("key", "value")]
        steps, quantised = self._quantised(layer)
        attended = g.node(
            "GroupQueryAttention",
            [*heads, *past, self._last, self._total, self._cos, self._sin, *steps],
            [Value(f"{layer}.attended"), *present],
            domain="com.microsoft",
            num_heads=arch.heads,
            kv_num_heads=arch.kv_heads,
            scale=1 / math.sqrt(arch.head_dim),
            do_rotary=1,
            rotary_interleaved=0,
            **quantised,
        )
        for value in present:
            g.output(value, shape, dtype)
        return attended

    def _quantised(self, layer: int) -> tuple[list[Value], dict[str, object]]:
        """Additional inputs and attributes of attention where keys and values are stored in ``kv_bits`` bits."""
        if self._kv_bits is None:
            return [], {}
        names = (f"{layer}.key_steps", f"{layer}.value_steps")
        arrays = scales(self._graph.checkpoint, self._arch, layer)
        steps = [self._graph.constant(name, array) for name, array in zip(names, arrays, strict=True)]
        kinds = {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL", "kv_cache_bit_width": self._kv_bits}
        return [NOTHING, NOTHING, NOTHING, *steps], kinds


def build_head(graph: GraphBuilder, architecture: Architecture) -> None:
    """Add final norm and output head: ``hidden`` (1, T, D) in, ``logits`` (1, T, V) out.

    Raises:
        ModelError: a tensor is absent, or shapes or dtypes of tensors do not fit each other.
    """
    x = graph.input("hidden", [1, "tokens", architecture.hidden_size])
    normed = graph.rms_norm("normed", x, "model.norm", architecture.epsilon)
    head = "model.embed_tokens" if architecture.tied else "lm_head"
    graph.output(graph.linear("logits", normed, [head]), [1, "tokens", "ids"])
