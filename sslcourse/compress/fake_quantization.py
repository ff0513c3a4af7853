"""Rounding in floating point that lets gradients through, so that weights learn to bear it (QAT).

What this module does not do: save anything. ``compress.int8_copies.fake_copy`` makes a model of these layers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslcourse.compress.integers import _grouped, grid, limits

if TYPE_CHECKING:
    from jaxtyping import Float, Int


class _Fake(torch.autograd.Function):
    """Forward on the grid; backward as if nothing had happened, but for what saturated."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int) -> Tensor:
        levels = torch.round(x * (1 / scale)) + zero_point
        ctx.save_for_backward((levels >= low) & (levels <= high))
        return (levels.clamp(low, high) - zero_point) * scale

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (inside,) = ctx.saved_tensors
        return gradient * inside, None, None, None, None


def fake_quantize(
    x: Float[Tensor, "*shape"], scale: Float[Tensor, "*shape"], zero_point: Int[Tensor, "*shape"], low: int, high: int
) -> Float[Tensor, "*shape"]:
    """Quantized and dequantized at once, with a gradient that passes straight through inside the range.

    Rounding has a gradient of zero almost everywhere, which would teach nothing. So the backward pass leaves it out
    (the straight-through estimator: Bengio et al. 2013, arXiv 1308.3432). Equal to
    ``torch.fake_quantize_per_tensor_affine``, forward and backward.
    """
    return _Fake.apply(x, scale, zero_point, low, high)


class FakeLinear(nn.Linear):
    """A linear layer that rounds its weights (in groups) and its inputs (a scale for each token) as it computes."""

    def __init__(self, linear: nn.Linear, bits: int, group: int | None, activation_bits: int | None) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.bits, self.group, self.activation_bits = bits, group, activation_bits

    def forward(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        if self.activation_bits is not None:
            x = _faked(x, self.activation_bits)
        weight = _faked(_grouped(self.weight, self.group), self.bits).view_as(self.weight)
        return F.linear(x, weight, self.bias)


def _faked(x: Tensor, bits: int) -> Tensor:
    most = x.detach().abs().amax(-1, keepdim=True)
    return fake_quantize(x, *grid(-most, most, bits), *limits(bits))
