"""How a checkpoint's weights are quantised, in the one form that both backends read."""

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
"""MLX's modes, with the bits and the group size that each has where none are given."""
_METHODS = ("mxfp4", "mxfp8")
"""Other programs' methods whose weights MLX reads as they are."""


@dataclass(frozen=True)
class Quantisation:
    """MLX quantisation of one linear: ``bits`` a weight, and one scale (affine: and bias) a group along the input."""

    bits: int
    group_size: int
    mode: str = "affine"


@dataclass(frozen=True)
class Quantisations:
    """The quantisation of a model's linears: one for all, and exceptions by module name (None: not quantised)."""

    usual: Quantisation | None = None
    own: Mapping[str, Quantisation | None] = field(default_factory=dict)

    def of(self, module: str) -> Quantisation | None:
        """The quantisation of ``module``, provided that it has scales."""
        return self.own.get(module, self.usual)

    def modes(self) -> set[Quantisation]:
        """Every quantisation that occurs."""
        return {each for each in (self.usual, *self.own.values()) if each is not None}

    def to_config(self) -> dict[str, Any]:
        """``quantization`` of config.json, as mlx-lm reads it."""
        return {**_numbers(self.usual), **{module: each and _numbers(each) for module, each in self.own.items()}}


def _numbers(quantisation: Quantisation | None) -> dict[str, Any]:
    if quantisation is None:
        return {}
    return {"bits": quantisation.bits, "group_size": quantisation.group_size, "mode": quantisation.mode}


def read_quantisations(*sections: Section) -> Quantisations:
    """The quantisation that the first of ``sections`` with one describes.

    Raises:
        ModelError: it is of a kind that edgepp does not read, or not described.
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
    own = {
        module: _one(described.section(module)) if isinstance(value, dict) else usual if value else None
        for module, value in described.values.items()
        if isinstance(value, dict | bool)
    }
    return Quantisations(usual, own)


def _one(described: Section, *, complete: bool = False) -> Quantisation:
    """One linear's quantisation; unless it must be ``complete``, absent numbers are those that its mode has."""
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
            " which MLX does not know",
            "convert the model with `mlx_lm.convert`",
        )
    return chosen
