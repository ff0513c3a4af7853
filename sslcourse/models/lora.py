"""LoRA: train two thin matrices beside each frozen one (Hu et al. 2021, arXiv 2106.09685).

    add_lora(model.body, rank=8)        # in place; only A, B and the task's head are trained afterwards
    merge_lora(model.body)              # plain linear maps again, with the same outputs

Twenty lines, equal to what the ``peft`` library computes (a test compares). What this module does not do: dropout on
the adapter's input, adapters of other shapes, several adapters at once; ``peft`` does.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from jaxtyping import Float


class LoRALinear(nn.Module):
    """A frozen linear map plus a trained one of low rank: W x + (alpha / rank) · B (A x).

    B starts at zero, so the model starts as it was. Source: Hu et al. 2021, arXiv 2106.09685, section 4.1.
    """

    def __init__(self, linear: nn.Linear, rank: int = 8, alpha: float = 16.0) -> None:
        super().__init__()
        if not 1 <= rank <= min(linear.weight.shape):
            raise ValueError(f"rank={rank} must lie between 1 and {min(linear.weight.shape)}, the weight's own rank")
        self.linear = linear.requires_grad_(False)
        outputs, inputs = linear.weight.shape
        self.A = nn.Parameter(torch.empty(rank, inputs, device=linear.weight.device))
        self.B = nn.Parameter(torch.zeros(outputs, rank, device=linear.weight.device))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        self.scale = alpha / rank

    def forward(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        return self.linear(x) + F.linear(F.linear(x, self.A), self.B) * self.scale

    def merged(self) -> nn.Linear:
        """One plain linear map with the same outputs: after training LoRA costs nothing."""
        plain = copy.deepcopy(self.linear)
        with torch.no_grad():
            plain.weight += self.scale * self.B @ self.A
        return plain.requires_grad_(True)


def add_lora(
    body: nn.Module, rank: int = 8, alpha: float = 16.0, targets: Sequence[str] = ("Wqkv", "Wi", "Wo")
) -> nn.Module:
    """Freeze ``body`` and wrap, in place, every linear map whose name ends in one of ``targets``.

    Raises:
        ValueError: if no linear map has such a name.
    """
    found = [name for name, module in body.named_modules()
             if isinstance(module, nn.Linear) and name.rpartition(".")[2] in targets]  # fmt: skip
    unknown = [target for target in targets if not any(name.rpartition(".")[2] == target for name in found)]
    if unknown:
        raise ValueError(f"targets={tuple(targets)}: {unknown[0]!r} names no linear map of {type(body).__name__}")
    body.requires_grad_(False)
    for name in found:
        parent, _, last = name.rpartition(".")
        setattr(body.get_submodule(parent), last, LoRALinear(body.get_submodule(name), rank, alpha))
    return body


def merge_lora(body: nn.Module) -> nn.Module:
    """Replace, in place, every ``LoRALinear`` by the one linear map that it amounts to."""
    for name in [name for name, module in body.named_modules() if isinstance(module, LoRALinear)]:
        parent, _, last = name.rpartition(".")
        setattr(body.get_submodule(parent), last, body.get_submodule(name).merged())
    return body
