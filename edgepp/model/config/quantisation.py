"""The quantisation of the weights of a checkpoint, in one form for both backends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edgepp.errors import ModelError
from edgepp.model.bounded_files import shown
from edgepp.model.config.section import Section

_BITS = (2, 3, 4, 5, 6, 8)
_GROUP_SIZES = (16, 32, 64, 128, 256)
_MODES: Mapping[str, tuple[int, int]] = {"affine": (4, 64), "mxfp4": (4, 32), "mxfp8": (8, 32), "nvfp4": (4, 16)}
"""MLX's modes, each with its default bits and group size."""
_METHODS = ("mxfp4", "mxfp8")
"""Methods of other programs whose weights MLX reads without conversion."""


@dataclass(frozen=True)
class Quantisation:
    """MLX quantisation of a linear: ``bits`` per weight, one scale (affine: and one bias) per group along the input."""

    bits: int
    group_size: int
    mode: str = "affine"


@dataclass(frozen=True)
class Quantisations:
    """The quantisation of the linears of a model: the usual one, and exceptions by module name (None: unquantised)."""

    usual: Quantisation | None = None
    exceptions: Mapping[str, Quantisation | None] = field(default_factory=dict)

    def of(self, module: str) -> Quantisation | None:
        """The quantisation of ``module``, which counts only if the checkpoint has scales of the module."""
        return self.exceptions.get(module, self.usual)

    def modes(self) -> set[Quantisation]:
        """Every quantisation that occurs."""
        return {one for one in (self.usual, *self.exceptions.values()) if one is not None}

    def to_config(self) -> dict[str, Any]:
        """The value of ``quantization`` in a config.json, as mlx-lm reads it."""
        return {**_numbers(self.usual), **{module: one and _numbers(one) for module, one in self.exceptions.items()}}


def _numbers(quantisation: Quantisation | None) -> dict[str, Any]:
    if quantisation is None:
        return {}
    return {"bits": quantisation.bits, "group_size": quantisation.group_size, "mode": quantisation.mode}


def read_quantisations(*sections: Section) -> Quantisations:
    """The quantisation in the first of ``sections`` that describes one.

    Raises:
        ModelError: the method or mode is not supported, or numbers are missing or out of range.
    """
    for section in sections:
        for key in ("quantization", "quantization_config"):
            described = section.section(key)
            if described.values:
                return _read(described)
    return Quantisations()


def _read(described: Section) -> Quantisations:
    method = described.text("quant_method", "")
    if method in _METHODS:
        bits, group_size = _MODES[method]
        return Quantisations(Quantisation(bits, group_size, method))
    if method not in ("", "affine", "mlx"):
        raise ModelError(
            f"the model is quantised by {shown(method)} ({described.where}), which edgepp does not read",
            "use the model as mlx-lm quantises it, for example from mlx-community, or convert the original with "
            "`mlx_lm.convert --quantize`",
        )
    usual = _one(described, complete=True)
    exceptions = {
        module: _one(described.section(module)) if isinstance(value, dict) else usual if value else None
        for module, value in described.values.items()
        if isinstance(value, dict | bool)
    }
    return Quantisations(usual, exceptions)


def _one(described: Section, *, complete: bool = False) -> Quantisation:
    """One quantisation; absent numbers are the defaults of the mode, unless the section must be ``complete``."""
    mode = described.text("mode", "affine")
    if mode not in _MODES:
        raise ModelError(
            f"weights are quantised in mode '{shown(mode)}' ({described.where}), which edgepp does not read",
            f"convert the model with `mlx_lm.convert` in one of the modes {', '.join(_MODES)}",
        )
    bits, group_size = (None, None) if complete else _MODES[mode]
    chosen = Quantisation(described.size("bits", bits), described.size("group_size", group_size), mode)
    if chosen.bits not in _BITS or chosen.group_size not in _GROUP_SIZES:
        raise ModelError(
            f"weights are quantised in {chosen.bits} bits and groups of {chosen.group_size} ({described.where}),"
            " which MLX does not support",
            "convert the model with `mlx_lm.convert`",
        )
    return chosen
