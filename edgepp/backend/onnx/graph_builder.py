"""A builder of ONNX graphs in memory, with one method per operator, and of sessions from graphs.

Weights are external initialisers that point at memory, so the serialised graph stays small, and a mapped checkpoint is
not copied. The operators of a decoder layer are put together in ``decoder_graph``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from edgepp.backend.base import BackendOptions
from edgepp.backend.onnx.weights import CONVERTED_GROUP, NBits, converted, dense, quantised
from edgepp.errors import ModelError
from edgepp.model.weights.checkpoint import Array, Checkpoint
from edgepp.printable import one_line

ORT_ERRORS: tuple[type[Exception], ...] = (
    ort_errors.EPFail,
    ort_errors.EngineError,
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
    RuntimeError,
)
"""Exceptions of ONNX Runtime, which have no base class in common; a run with bindings raises RuntimeError."""

_MICROSOFT = "com.microsoft"
_INT8, _FLOAT32 = 4, 0  # accuracy levels of MatMulNBits: the type that activations are rounded to
_INLINE_BYTES = 1024  # initialisers up to this size are stored in the graph itself
_SPIN_US = 200  # bridges the gap between two operators, too short for two sessions of a process to compete for cores
_EXACT_RESIDUE = 1e-6  # in steps of a 4-bit code: less than the rounding of float32 arithmetic


@dataclass(frozen=True)
class Value:
    """A tensor in the graph, by its name."""

    name: str


NOTHING = Value("")
"""An omitted optional input or output."""


class GraphBuilder:
    """The nodes and weights of one graph; a method named after an operator adds one node and returns its result."""

    def __init__(self, checkpoint: Checkpoint, *, exact: bool) -> None:
        self.checkpoint = checkpoint
        self.exact = exact
        self._nodes: list[onnx.NodeProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._initialisers: dict[str, onnx.TensorProto] = {}
        self._in_memory: dict[str, Array] = {}
        self._means: dict[tuple[Value, int], Value] = {}

    def input(self, name: str, shape: Sequence[int | str], dtype: int = TensorProto.FLOAT) -> Value:
        """Add an input of the graph; a name in ``shape`` stands for any length."""
        self._inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return Value(name)

    def output(self, value: Value, shape: Sequence[int | str], dtype: int = TensorProto.FLOAT) -> None:
        """Make ``value`` an output of the graph."""
        self._outputs.append(helper.make_tensor_value_info(value.name, dtype, shape))

    def constant(self, name: str, array: Array) -> Value:
        """Add a weight, once per name; ``array`` must stay in memory until ``session`` is called."""
        if name not in self._initialisers:
            array = np.ascontiguousarray(array)
            if array.nbytes > _INLINE_BYTES:
                self._in_memory[name] = array
                self._initialisers[name] = _external(name, array)
            else:
                self._initialisers[name] = numpy_helper.from_array(array, name)
        return Value(name)

    def node(
        self,
        operator: str,
        inputs: Sequence[Value],
        outputs: Sequence[Value],
        domain: str = "",
        **attributes: object,
    ) -> Value:
        """Add any operator; returns its first output."""
        names = [value.name for value in outputs]
        node = helper.make_node(
            operator, [value.name for value in inputs], names, name=names[0], domain=domain, **attributes
        )
        self._nodes.append(node)
        return outputs[0]

    def add(self, name: str, a: Value, b: Value) -> Value:
        """``a + b``."""
        return self.node("Add", [a, b], [Value(name)])

    def norm_weight(self, module: str) -> Value:
        """The weight of the RMS norm ``module``, as float32.

        Raises:
            ModelError: the tensor is not on this disk.
        """
        return self.constant(f"{module}.weight", self.checkpoint.array(f"{module}.weight").astype(np.float32))

    def rms_norm(self, name: str, x: Value, module: str, epsilon: float) -> Value:
        """RMS norm of ``x`` over the last axis."""
        return self.node(
            "SimplifiedLayerNormalization",
            [x, self.norm_weight(module)],
            [Value(name)],
            axis=-1,
            epsilon=epsilon,
            stash_type=1,
        )

    def add_rms_norm(self, name: str, x: Value, delta: Value, module: str, epsilon: float) -> tuple[Value, Value]:
        """RMS norm of ``x + delta``, and that sum, as (norm, sum)."""
        total = Value(f"{name}.sum")
        normed = self.node(
            "SkipSimplifiedLayerNormalization",
            [x, delta, self.norm_weight(module)],
            [Value(name), NOTHING, NOTHING, total],
            domain=_MICROSOFT,
            epsilon=epsilon,
        )
        return normed, total

    def silu_times(self, name: str, gate: Value, up: Value) -> Value:
        """``silu(gate) * up``."""
        silu = self.node("QuickGelu", [gate], [Value(f"{name}.silu")], domain=_MICROSOFT, alpha=1.0)
        return self.node("Mul", [silu, up], [Value(name)])

    def linear(self, name: str, x: Value, modules: Sequence[str], *, bias: bool = False) -> Value:
        """``x @ W.T (+ bias)`` (…, N) of ``x`` (…, K), with the outputs of several ``modules`` concatenated.

        Raises:
            ModelError: a tensor is absent, or shapes or dtypes of tensors do not fit each other.
        """
        settings = {self.checkpoint.quantisation(module) for module in modules}
        if len(settings) > 1:
            parts = [self.linear(f"{name}.{i}", x, [module]) for i, module in enumerate(modules)]
            y = self.node("Concat", parts, [Value(name)], axis=-1)
        else:
            y = self._stacked(Value(f"{name}.unbiased" if bias else name), x, modules)
        if not bias:
            return y
        biases = [self.checkpoint.array(f"{module}.bias").astype(np.float32) for module in modules]
        return self.add(name, y, self.constant(f"{name}.bias", np.concatenate(biases)))

    def _stacked(self, out: Value, x: Value, modules: Sequence[str]) -> Value:
        quantisation = self.checkpoint.quantisation(modules[0])
        columns = self.checkpoint.array(f"{modules[0]}.weight").shape[-1]
        if quantisation is None and not self.exact and columns % CONVERTED_GROUP == 0:
            return self._nbits(out, x, converted(self.checkpoint, modules))
        if quantisation is None or (self.exact and quantisation.bits > 4):
            weight = self.constant(f"{out.name}.weight", dense(self.checkpoint, modules))
            return self.node("MatMul", [x, weight], [out])
        if self.exact:
            return self._nbits(out, x, quantised(self.checkpoint, modules, max_residue=_EXACT_RESIDUE))
        return self._nbits(out, x, quantised(self.checkpoint, modules))

    def _nbits(self, out: Value, x: Value, weight: NBits) -> Value:
        inputs = [
            x,
            self.constant(f"{out.name}.codes", weight.codes),
            self.constant(f"{out.name}.scales", weight.scales),
        ]
        if weight.zero_points is not None:
            inputs.append(self.constant(f"{out.name}.zero_points", weight.zero_points))
        product = self.node(
            "MatMulNBits",
            inputs,
            [out if weight.residue is None else Value(f"{out.name}.product")],
            domain=_MICROSOFT,
            K=weight.columns,
            N=weight.rows,
            bits=weight.bits,
            block_size=weight.group_size,
            accuracy_level=_FLOAT32 if self.exact else _INT8,
        )
        if weight.residue is None:
            return product
        residue = self.constant(f"{out.name}.residue", weight.residue.T * np.float32(weight.group_size))
        means = self._group_means(x, weight.group_size)
        correction = self.node("MatMul", [means, residue], [Value(f"{out.name}.correction")])
        return self.add(out.name, product, correction)

    def _group_means(self, x: Value, group_size: int) -> Value:
        """Means of ``x`` over each group of columns, (1, T, G); linears with the same input share one node."""
        key = (x, group_size)
        if key not in self._means:
            self._means[key] = self.node(
                "AveragePool",
                [x],
                [Value(f"{x.name}.means{group_size}")],
                kernel_shape=[group_size],
                strides=[group_size],
            )
        return self._means[key]

    def session(self, options: BackendOptions) -> ort.InferenceSession:
        """Create the session that runs the graph, and release the weights that the builder holds.

        Raises:
            ModelError: ONNX Runtime refuses the graph.
        """
        graph = helper.make_graph(self._nodes, "edgepp", self._inputs, self._outputs, list(self._initialisers.values()))
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid(_MICROSOFT, 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
        settings = _session_options(options)
        values = [ort.OrtValue.ortvalue_from_numpy(array) for array in self._in_memory.values()]
        settings.add_external_initializers(list(self._in_memory), values)
        try:
            return ort.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
        except ORT_ERRORS as error:
            raise ModelError(
                f"ONNX Runtime cannot load {self.checkpoint.path.name}: {one_line(str(error), 200)}"
            ) from error
        finally:
            self._in_memory.clear()
            self._initialisers.clear()


def _external(name: str, array: Array) -> onnx.TensorProto:
    tensor = TensorProto(name=name, dims=array.shape, data_location=TensorProto.EXTERNAL)
    tensor.data_type = helper.np_dtype_to_tensor_dtype(array.dtype)
    for key, value in (("location", "memory"), ("offset", "0"), ("length", str(array.nbytes))):
        tensor.external_data.add(key=key, value=value)
    return tensor


def _session_options(options: BackendOptions) -> ort.SessionOptions:
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = options.threads
    settings.inter_op_num_threads = 1
    settings.log_severity_level = 3
    settings.enable_mem_pattern = False  # shapes change with every chunk and with the cache
    settings.add_session_config_entry("session.intra_op.allow_spinning", "1" if options.spin else "0")
    settings.add_session_config_entry("session.intra_op.spin_duration_us", str(_SPIN_US))
    return settings
