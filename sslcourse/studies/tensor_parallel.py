"""One layer cut lengthwise over several ranks (tensor parallel), written out for this course's layer.

Each rank holds some of the attention's heads and some columns of the MLP, and one sum over ranks closes each of the
two. What this module does not do: train a model this way; ``torch.distributed.tensor`` does.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sslcourse.models.encoder import attend, rotate

if TYPE_CHECKING:
    from jaxtyping import Float

    from sslcourse.models.encoder import Layer


class _Enter(torch.autograd.Function):
    """Where a value that all ranks hold enters their different parts: each part's gradient adds up."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous().clone()
        dist.all_reduce(gradient)
        return gradient


class _Leave(torch.autograd.Function):
    """Where the parts' results are added up: every part's gradient is that of the sum."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous().clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class ParallelLayer(nn.Module):
    """This rank's part of a layer; all ranks together compute what the whole layer does, forward and backward.

    Columns first, rows second: what leaves the first matrix in parts enters the second in the same parts, so that a
    layer needs two sums forward and two backward. Norms are small and stand on every rank.
    Source: Shoeybi et al. 2019, Megatron-LM, arXiv 1909.08053, section 3.

    Raises:
        ValueError: if heads or MLP columns do not divide by ``world``.
    """

    def __init__(self, layer: Layer, rank: int, world: int) -> None:
        super().__init__()
        heads, inner = layer.attn.heads, layer.mlp.Wo.in_features
        if heads % world or inner % world:
            raise ValueError(f"world={world} does not divide the layer's {heads} heads and {inner} MLP columns; "
                             "choose a number that divides both")  # fmt: skip
        self.layer, self.heads = copy.deepcopy(layer), heads // world
        for name, weight in layer.named_parameters():
            module, _, kind = name.rpartition(".")
            mine = nn.Parameter(part_of(name, weight.detach(), heads, rank, world))
            setattr(self.layer.get_submodule(module), kind, mine)

    def forward(self, x: Float[Tensor, "batch seq hidden"], rotary: Any, mask: Tensor | None) -> Tensor:
        layer = self.layer
        x = x + _Leave.apply(self._attend(_Enter.apply(layer.attn_norm(x)), rotary, mask))
        return x + _Leave.apply(layer.mlp(_Enter.apply(layer.mlp_norm(x))))

    def _attend(self, x: Tensor, rotary: Any, mask: Tensor | None) -> Tensor:
        """As the layer's attention, of this rank's heads alone: fewer numbers in the middle than at either end."""
        batch, seq, _ = x.shape
        split = self.layer.attn.Wqkv(x).view(batch, seq, 3, self.heads, -1)
        query, key, value = split.transpose(1, 3).unbind(2)
        query, key = rotate(query, *rotary), rotate(key, *rotary)
        mixed = attend(query, key, value, mask)
        return self.layer.attn.Wo(mixed.transpose(1, 2).flatten(2))


def part_of(name: str, weight: Tensor, heads: int, rank: int, world: int) -> Tensor:
    """This rank's part of a layer's weight (or of its gradient), a copy; norms are whole."""
    if name == "attn.Wqkv.weight":  # query, key and value of whole heads
        split = weight.view(3, heads, -1, weight.shape[1]).chunk(world, dim=1)[rank]
    elif name == "mlp.Wi.weight":  # the activated half and the gate, of the same columns
        split = weight.view(2, -1, weight.shape[1]).chunk(world, dim=1)[rank]
    elif name in ("attn.Wo.weight", "mlp.Wo.weight"):
        return weight.chunk(world, dim=1)[rank].clone()
    else:
        return weight.clone()
    return split.reshape(-1, weight.shape[1]).clone()
