"""A linear map and an embedding whose weights are int8, by hand; activations are measured on the fly.

What this module does not do: put them into a model (``compress.int8_copies``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sslcourse.compress.integers import Quantized, grid, int_product, on_grid, quantize

if TYPE_CHECKING:
    from jaxtyping import Float, Int, Int32


class Int8Linear(nn.Module):
    """A linear layer in int8: y = (q_x q_Wᵀ) · s_x · s_W + b, the sum in int32.

    Weights have a scale for each output. Activations are measured as they come, a scale for each token; or, with
    ``reach`` = (low, high) from calibration, all lie on one affine grid, and the zero point is taken out of the sum:
    Σ (q_x - z) q_W = Σ q_x q_W - z Σ q_W.
    """

    def __init__(self, linear: nn.Linear, reach: tuple[float, float] | None = None) -> None:
        super().__init__()
        weight = quantize(linear.weight.detach(), axis=0)
        self.register_buffer("weight", weight.values)
        self.register_buffer("scale", weight.scale[:, 0])
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().clone(), requires_grad=False)
        self.reach = reach
        self.in_features, self.out_features = linear.in_features, linear.out_features

    def accumulate(self, x: Float[Tensor, "n inputs"]) -> tuple[Int32[Tensor, "n outputs"], Quantized]:
        """(int32 sums of products, the activations on their grid)."""
        if self.reach is None:
            q = quantize(x, axis=0)
        else:
            low, high = (x.new_tensor(bound) for bound in self.reach)
            q = on_grid(x, *grid(low, high, symmetric=False), symmetric=False)
        return int_product(q.values, self.weight.t()), q

    def forward(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        sums, q = self.accumulate(x.flatten(0, -2))
        if self.reach is not None:
            sums = sums - q.zero_point * self.weight.sum(1, dtype=torch.int32)
        y = sums * q.scale * self.scale
        y = y if self.bias is None else y + self.bias
        return y.view(*x.shape[:-1], -1).to(x.dtype)

    def extra_repr(self) -> str:
        how = "on the fly" if self.reach is None else f"{self.reach[0]:.3g} to {self.reach[1]:.3g}"
        return f"{self.in_features} -> {self.out_features}, activations {how}"


class Int8Embedding(nn.Module):
    """A table of int8 rows, a scale for each."""

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        weight = quantize(embedding.weight.detach(), axis=0)
        self.register_buffer("weight", weight.values)
        self.register_buffer("scale", weight.scale)
        self.num_embeddings, self.embedding_dim = embedding.num_embeddings, embedding.embedding_dim

    def forward(self, ids: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch hidden"]:
        return self.weight[ids] * self.scale[ids]
