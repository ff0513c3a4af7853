"""What an optimiser does with a gradient, written out: SGD, Adam and AdamW, one parameter and one step at a time.

Each is equal to torch's own (a test compares). What this module does not do: loop over a model; ``train.optimizers``
makes the optimiser that training uses.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def sgd_step(
    param: Tensor, grad: Tensor, state: dict[str, Any], *, lr: float, momentum: float = 0.0, weight_decay: float = 0.0
) -> Tensor:
    """One step of SGD with (heavy-ball) momentum and L2 decay, as ``torch.optim.SGD``."""
    grad = grad + weight_decay * param
    if momentum:
        state["velocity"] = grad.clone() if "velocity" not in state else momentum * state["velocity"] + grad
        grad = state["velocity"]
    return param.sub_(lr * grad)


@torch.no_grad()
def adam_step(
    param: Tensor,
    grad: Tensor,
    state: dict[str, Any],
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> Tensor:
    """One step of Adam, ``weight_decay`` being L2 *in the loss*, as ``torch.optim.Adam``.

    Source: Kingma and Ba 2015, arXiv 1412.6980, algorithm 1.
    """
    return param.sub_(lr * _adam_direction(grad + weight_decay * param, state, betas, eps))


@torch.no_grad()
def adamw_step(
    param: Tensor,
    grad: Tensor,
    state: dict[str, Any],
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
) -> Tensor:
    """One step of AdamW: the decay acts on the weight itself and is not divided by the gradient's size.

    Source: Loshchilov and Hutter 2019, arXiv 1711.05101, algorithm 2; as ``torch.optim.AdamW``.
    """
    direction = _adam_direction(grad, state, betas, eps)
    return param.mul_(1 - lr * weight_decay).sub_(lr * direction)


def _adam_direction(grad: Tensor, state: dict[str, Any], betas: tuple[float, float], eps: float) -> Tensor:
    """Bias-corrected mean of the gradient over the root of its mean square."""
    beta1, beta2 = betas
    state["step"] = state.get("step", 0) + 1
    state["mean"] = beta1 * state.get("mean", torch.zeros_like(grad)) + (1 - beta1) * grad
    state["square"] = beta2 * state.get("square", torch.zeros_like(grad)) + (1 - beta2) * grad**2
    mean = state["mean"] / (1 - beta1 ** state["step"])
    square = state["square"] / (1 - beta2 ** state["step"])
    return mean / (square.sqrt() + eps)
