"""Numbers with few bits: every value of a format from its bits, and rounding equal to the hardware's.

    FORMATS["bf16"].values()       # Format: what a format can hold, and how far apart its values lie
    round_to(x, "fp8_e4m3")        # to nearest, ties to even

What this module does not do: compute in them. Products in 16 bits are torch's, training in them is
``train.mixed_precision``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float, Int


@dataclass(frozen=True)
class Format:
    """A binary floating-point format: one sign bit, then exponent, then mantissa (IEEE 754-2019, section 3.4).

    Args:
        overflow: what becomes of a number that rounds beyond ``max``: "inf", "saturate" (to ``max``) or "nan". A
            format without "inf" gives the highest exponent to ordinary numbers, all but the pattern of ones, which is
            nan (Micikevicius et al. 2022, arXiv 2209.05433, section 3).
        dtype: torch's type of the same bits, if there is one.
    """

    name: str
    exponent_bits: int
    mantissa_bits: int
    overflow: str = "inf"
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        if not 2 <= self.exponent_bits <= 8:
            raise ValueError(f"exponent_bits={self.exponent_bits} must lie in 2 to 8, so that fp32 holds every value")
        if not 1 <= self.mantissa_bits <= 23:
            raise ValueError(f"mantissa_bits={self.mantissa_bits} must lie in 1 to 23, so that fp32 holds every value")
        if self.overflow not in ("inf", "saturate", "nan"):
            raise ValueError(f"overflow={self.overflow!r} is unknown; choose inf, saturate or nan")

    @property
    def bits(self) -> int:
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def bias(self) -> int:
        """What is subtracted from the exponent's bits."""
        return 2 ** (self.exponent_bits - 1) - 1

    @property
    def min_exponent(self) -> int:
        """Of the smallest normal number; the subnormal ones below it share its spacing."""
        return 1 - self.bias

    @property
    def max_exponent(self) -> int:
        """One more where no exponent is set aside for infinity."""
        return self.bias if self.overflow == "inf" else self.bias + 1

    @property
    def eps(self) -> float:
        """Distance from 1 to the next larger number."""
        return 2.0**-self.mantissa_bits

    @property
    def max(self) -> float:
        largest_mantissa = 2 - (1 if self.overflow == "inf" else 2) * self.eps  # without inf, the last pattern is nan
        return largest_mantissa * 2.0**self.max_exponent

    @property
    def min_normal(self) -> float:
        return 2.0**self.min_exponent

    @property
    def min_subnormal(self) -> float:
        """The smallest number over 0; what is below half of it rounds to 0."""
        return self.min_normal * self.eps

    def decode(self, pattern: int) -> float:
        """The value of ``bits`` bits, given as an integer, the sign bit being the highest."""
        if not 0 <= pattern < 2**self.bits:
            raise ValueError(f"pattern={pattern} does not fit into the {self.bits} bits of {self.name}")
        mantissa = pattern % 2**self.mantissa_bits
        exponent = pattern // 2**self.mantissa_bits % 2**self.exponent_bits
        sign = -1.0 if pattern >> (self.bits - 1) else 1.0
        if exponent == 0:
            return sign * mantissa * self.min_subnormal
        if self.overflow == "inf" and exponent == 2**self.exponent_bits - 1:
            return sign * float("inf") if mantissa == 0 else float("nan")
        if pattern % 2 ** (self.bits - 1) == 2 ** (self.bits - 1) - 1:
            return float("nan")
        return sign * (1 + mantissa * self.eps) * 2.0 ** (exponent - self.bias)

    def spacing(self, x: Float[Tensor, "*shape"] | float) -> Float[Tensor, "*shape"]:
        """Distance between neighbours where ``x`` stands (float64): the unit in the last place; nan where x is not
        finite. At a power of two it is the distance to the larger neighbour."""
        x = torch.as_tensor(x, dtype=torch.float64)
        exponent = _exponent(x).clamp(self.min_exponent, self.max_exponent)
        return torch.where(x.isfinite(), _power_of_two(exponent - self.mantissa_bits), torch.nan)


FORMATS = {
    "fp32": Format("fp32", 8, 23, dtype=torch.float32),
    "tf32": Format("tf32", 8, 10),  # stored in 32 bits; matrix units read 19 of them
    "bf16": Format("bf16", 8, 7, dtype=torch.bfloat16),
    "fp16": Format("fp16", 5, 10, dtype=torch.float16),
    "fp8_e4m3": Format("fp8_e4m3", 4, 3, overflow="saturate", dtype=torch.float8_e4m3fn),
    "fp8_e5m2": Format("fp8_e5m2", 5, 2, dtype=torch.float8_e5m2),
}


def round_to(x: Float[Tensor, "*shape"], format: Format | str) -> Float[Tensor, "*shape"]:
    """The nearest number of ``format``, ties to the even mantissa; float32, or float64 if ``x`` is that.

    A number that would round beyond the largest one follows ``format.overflow``. Below the smallest normal number the
    spacing stays what it is there (gradual underflow); nan and the sign of zero stay.

    Raises:
        ValueError: for the name of an unknown format, or ``x`` that is no floating-point tensor.
    """
    format = find(format)
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise ValueError(f"x={type(x).__name__} must be a floating-point tensor; wrap it in torch.tensor(..., "
                         "dtype=torch.float32)")  # fmt: skip
    exact = x.double()  # holds every fp32 number and every quotient below without rounding
    quantum = _power_of_two(_exponent(exact).clamp(min=format.min_exponent, max=1000) - format.mantissa_bits)
    rounded = torch.round(exact / quantum) * quantum  # torch.round takes ties to even
    beyond = {"inf": torch.inf, "saturate": format.max, "nan": torch.nan}[format.overflow]
    rounded = torch.where(rounded.abs() > format.max, torch.copysign(torch.full_like(exact, beyond), exact), rounded)
    return torch.where(exact.isnan(), exact, rounded).to(x.dtype if x.dtype == torch.float64 else torch.float32)


def find(format: Format | str) -> Format:
    """A format by its name; a ``Format`` is returned as it is."""
    if isinstance(format, Format):
        return format
    if format not in FORMATS:
        raise ValueError(f"format={format!r} is unknown; choose {', '.join(FORMATS)}, or give a Format")
    return FORMATS[format]


def _exponent(x: Tensor) -> Int[Tensor, "*shape"]:
    """floor(log2 |x|), read from the exponent bits of float64: exact where a logarithm would round."""
    return (x.double().view(torch.int64) >> 52 & 0x7FF) - 1023


def _power_of_two(exponent: Tensor) -> Float[Tensor, "*shape"]:
    """2^exponent in float64, put together from its bits."""
    return (exponent + 1023 << 52).view(torch.float64)
