"""Small integers in place of floating-point numbers: a grid, rounding onto it, packing, and a product of integers.

    q = quantize(weight, axis=0)     # int8 values, a scale for each row; q.dequantize() is within half a step

What this module does not do: kernels. The product of integers is torch's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float, Int, Int8, Int32, UInt8

LARGEST_SUM = 2**31 // 128**2  # so many products of -128 and -128 fit into an int32


@dataclass(frozen=True)
class Quantized:
    """Whole numbers and what they stand for: (values - zero_point) · scale.

    ``values`` keeps the shape of the tensor, or [..., groups, group] where groups have scales of their own; ``scale``
    and ``zero_point`` broadcast against it. Fewer than 8 bits still lie in an int8; ``pack_int4`` puts two in a byte.
    """

    values: Int8[Tensor, "*shape"]
    scale: Float[Tensor, "*shape"]
    zero_point: Int[Tensor, "*shape"]
    bits: int
    shape: torch.Size

    def dequantize(self) -> Float[Tensor, "*shape"]:
        """The tensor again; inside the range each number is at most ``scale / 2`` from what it was."""
        return ((self.values.to(self.scale.dtype) - self.zero_point) * self.scale).view(self.shape)

    @property
    def bytes(self) -> float:
        """What it takes in a file: ``bits`` a number, and a scale (and zero point) for each row or group."""
        symmetric = bool((self.zero_point == 0).all())
        return self.values.numel() * self.bits / 8 + self.scale.numel() * (4 if symmetric else 5)


def limits(bits: int, symmetric: bool = True) -> tuple[int, int]:
    """The smallest and the largest whole number: -127 and 127 for eight symmetric bits, -128 and 127 for affine ones.

    A symmetric grid leaves one number out, so that x and -x are rounded alike.
    """
    if not isinstance(bits, int) or not 2 <= bits <= 8:
        raise ValueError(f"bits={bits} must be a whole number from 2 to 8: the values are kept in int8")
    top = 2 ** (bits - 1) - 1
    return (-top if symmetric else -top - 1), top


def grid(
    low: Float[Tensor, "*shape"], high: Float[Tensor, "*shape"], bits: int = 8, symmetric: bool = True
) -> tuple[Float[Tensor, "*shape"], Int[Tensor, "*shape"]]:
    """(scale, zero point) of a grid that covers low to high, and 0 (Jacob et al. 2018, arXiv 1712.05877, section 2.1).

    Zero is always a number of the grid: it is what padding and a ReLU give, and it must come back as zero.
    """
    bottom, top = limits(bits, symmetric)
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)
    tiny = torch.finfo(low.dtype).tiny * 2**8  # of a row of zeros; its inverse must stay finite, too
    if symmetric:
        scale = (torch.maximum(-low, high) / top).clamp(min=tiny)
        return scale, torch.zeros_like(scale, dtype=torch.int32)
    scale = ((high - low) / (top - bottom)).clamp(min=tiny)
    return scale, (bottom - torch.round(low / scale)).clamp(bottom, top).to(torch.int32)


def quantize(
    x: Float[Tensor, "*shape"],
    bits: int = 8,
    *,
    symmetric: bool = True,
    axis: int | None = None,
    group: int | None = None,
) -> Quantized:
    """The nearest whole numbers on a grid that covers ``x``; ties go to the even number.

    Args:
        axis: this axis keeps a scale for each of its places: 0 gives each row of a weight its own ("per channel").
        group: so many neighbours along the last axis share a scale.

    Raises:
        ValueError: for nan or infinities, an empty tensor, or an axis or a group that do not fit.
    """
    if x.numel() == 0:
        raise ValueError(f"x has shape {tuple(x.shape)}: there is nothing to quantize")
    if not bool(x.isfinite().all()):
        raise ValueError("x holds nan or infinities, and no grid covers those; find where they come from, or clip them")
    if axis is not None and group is not None:
        raise ValueError(f"give axis={axis} or group={group}, not both")
    cut = _grouped(x, group)
    along = tuple(_others(cut, axis, group))
    scale, zero_point = grid(cut.amin(along, keepdim=True), cut.amax(along, keepdim=True), bits, symmetric)
    return on_grid(cut, scale, zero_point, bits, symmetric, x.shape)


def on_grid(
    x: Float[Tensor, "*shape"],
    scale: Float[Tensor, "*shape"],
    zero_point: Int[Tensor, "*shape"],
    bits: int = 8,
    symmetric: bool = True,
    shape: torch.Size | None = None,
) -> Quantized:
    """``x`` on a grid that is given; what lies beyond its ends goes to the end (saturates)."""
    values = (torch.round(x * (1 / scale)) + zero_point).clamp(*limits(bits, symmetric)).to(torch.int8)
    return Quantized(values, scale, zero_point, bits, x.shape if shape is None else shape)


def _grouped(x: Tensor, group: int | None) -> Tensor:
    if group is None:
        return x
    if not isinstance(group, int) or group < 1 or x.shape[-1] % group:
        raise ValueError(f"group={group} does not divide the last axis of {x.shape[-1]}; choose one that does")
    return x.reshape(*x.shape[:-1], -1, group)


def _others(x: Tensor, axis: int | None, group: int | None) -> Iterable[int]:
    """The axes that share one scale."""
    if group is not None:
        return [x.ndim - 1]
    if axis is None:
        return range(x.ndim)
    if not -x.ndim <= axis < x.ndim:
        raise ValueError(f"axis={axis} is not an axis of a tensor of {x.ndim} dimensions")
    return [place for place in range(x.ndim) if place != axis % x.ndim]


def pack_int4(values: Int8[Tensor, "*rows even"]) -> UInt8[Tensor, "*rows half"]:
    """Two numbers from -8 to 7 in one byte, the first in the low half.

    Raises:
        ValueError: for a number outside, or an odd last axis.
    """
    if values.shape[-1] % 2:
        raise ValueError(f"the last axis has {values.shape[-1]} places; two share a byte, so give an even number")
    if int(values.min()) < -8 or int(values.max()) > 7:
        raise ValueError(f"values reach from {int(values.min())} to {int(values.max())}; four bits hold -8 to 7")
    low, high = (values & 0xF).to(torch.uint8).unflatten(-1, (-1, 2)).unbind(-1)
    return low | high << 4


def unpack_int4(packed: UInt8[Tensor, "*rows half"]) -> Int8[Tensor, "*rows even"]:
    """The inverse of ``pack_int4``."""
    halves = torch.stack([packed & 0xF, packed >> 4], dim=-1).flatten(-2).to(torch.int8)
    return torch.where(halves > 7, halves - 16, halves)


def int_product(a: Int8[Tensor, "n k"], b: Int8[Tensor, "k m"]) -> Int32[Tensor, "n m"]:
    """The exact product of int8 matrices, summed in int32, by the library's kernel.

    Raises:
        ValueError: if the sums might not fit into an int32.
    """
    if a.shape[-1] >= LARGEST_SUM:
        raise ValueError(f"a has {a.shape[-1]} columns; sums of {LARGEST_SUM} products of -128 do not fit into an "
                         "int32: cut the product into parts")  # fmt: skip
    return torch._int_mm(a, b)
