"""AdamW, or Muon for the matrices between embedding and scores and AdamW for the rest.

AdamW scales every number of a gradient on its own. Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) treats
a matrix as one thing: it takes the mean of past gradients and sets all its singular values to about 1, so that
directions which a gradient hardly shows are learnt as fast as the loud ones. An update of a matrix then has the size
that AdamW's usually has, so that both share one learning rate (Liu et al. 2025, arXiv 2502.16982, section 2.2).

What this module does not do: matrices that are spread over several processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from jaxtyping import Float

    from sslcourse.train.recipe import Recipe

MOMENTUM = 0.95
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # Jordan's quintic: steep at zero, and near enough to 1 from 0.7 to 1.2
ITERATIONS = 5
LIKE_ADAMW = 0.2  # root mean square of an update of AdamW, which Muon's is scaled to


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """The recipe's optimiser; weights decay in matrices only: norms and biases have no scale to keep small."""
    inner = inner_matrices(model) if recipe.optimizer == "muon" else []
    rest = [weight for weight in model.parameters() if all(weight is not one for one in inner)]
    groups: list[dict[str, Any]] = [
        {"params": [weight for weight in rest if weight.ndim >= 2], "weight_decay": recipe.weight_decay},
        {"params": [weight for weight in rest if weight.ndim < 2], "weight_decay": 0.0},
    ]
    settings = {"lr": recipe.learning_rate, "betas": (0.9, recipe.beta2), "fused": True}
    if not inner:
        return torch.optim.AdamW(groups, **settings)
    muon = {"params": inner, "weight_decay": recipe.weight_decay, "momentum": MOMENTUM}
    return MuonWithAdamW([*groups, muon], **settings)


def inner_matrices(model: nn.Module) -> list[nn.Parameter]:
    """All matrices but the table of embeddings, whose rows are tokens, which a batch meets or does not."""
    tables = [module.weight for module in model.modules() if isinstance(module, nn.Embedding)]
    return [one for one in model.parameters() if one.ndim == 2 and all(one is not table for table in tables)]


class MuonWithAdamW(torch.optim.AdamW):
    """Muon for the groups that have a ``momentum``, AdamW for the others, in one optimiser with one state."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of everything that has a gradient; what ``closure`` gave, if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups = self.param_groups
        for group in groups:
            if "momentum" in group:
                for alike in of_one_shape(weight for weight in group["params"] if weight.grad is not None):
                    self._turn(alike, group)
        self.param_groups = [group for group in groups if "momentum" not in group]
        try:
            super().step()
        finally:
            self.param_groups = groups
        return loss

    def _turn(self, weights: list[nn.Parameter], group: dict[str, Any]) -> None:
        """Muon's update of matrices of one shape: stacked, since many small products cost more than few large ones."""
        means = []
        for weight in weights:
            state = self.state[weight]
            if not state:
                state |= {"step": torch.tensor(0.0), "mean": torch.zeros_like(weight)}  # AdamW's loader asks for a step
            state["step"] += 1
            mean = state["mean"]
            mean.lerp_(weight.grad, 1 - group["momentum"])
            means.append(weight.grad.lerp(mean, group["momentum"]))  # Nesterov: a look ahead
        scale = group["lr"] * LIKE_ADAMW * max(weights[0].shape) ** 0.5
        for weight, update in zip(weights, orthogonal(torch.stack(means)), strict=True):
            weight.mul_(1 - group["lr"] * group["weight_decay"]).add_(update.to(weight.dtype), alpha=-scale)


def orthogonal(matrices: Float[Tensor, "n rows columns"]) -> Float[Tensor, "n rows columns"]:
    """The same singular vectors with singular values near 1, by products alone (Newton-Schulz), in bf16.

    An odd polynomial of a matrix changes its singular values and nothing else. Applied five times, this one brings all
    that are not tiny to between 0.7 and 1.2, which is as good as 1 for a step of descent.
    """
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = (matrices.mT if tall else matrices).bfloat16()
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    for _ in range(ITERATIONS):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def of_one_shape(weights: Iterable[nn.Parameter]) -> list[list[nn.Parameter]]:
    """The weights sorted by shape, in the order in which the shapes come."""
    found: dict[torch.Size, list[nn.Parameter]] = {}
    for weight in weights:
        found.setdefault(weight.shape, []).append(weight)
    return list(found.values())
