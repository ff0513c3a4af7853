"""The masked-language-modelling loss, its gradient, and the optimisers that use it, each in closed form.

Everything here exists in PyTorch and runs faster there. It is written out so that it can be read, differentiated by
hand and proven equal: ``mlm_loss`` to ``torch.nn.functional.cross_entropy``, ``mlm_loss_grad`` to autograd,
``sgd_step``, ``adam_step`` and ``adamw_step`` to ``torch.optim``.

Optimiser steps take the ``param``, its ``grad`` and a ``state`` dictionary that starts empty. Like ``torch.optim``
they change ``param`` and ``state`` in place; they return ``param``.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sslcourse.masking import IGNORE

if TYPE_CHECKING:
    from jaxtyping import Float, Int


def mlm_loss(logits: Float[Tensor, "*batch vocab"], labels: Int[Tensor, "*batch"]) -> Float[Tensor, ""]:
    """Mean cross-entropy in nats over the masked positions: those whose label is not -100.

    Source: Devlin et al. 2019, arXiv 1810.04805, section 3.1.

    Raises:
        ValueError: if nothing is masked (a mean over nothing), or shapes or labels do not fit.
    """
    total, count = mlm_loss_sum(logits, labels)
    if count == 0:
        raise ValueError("labels holds no masked position (all are -100), so there is no mean; mask at least one token")
    return total / count


def mlm_loss_sum(logits: Float[Tensor, "*batch vocab"], labels: Int[Tensor, "*batch"]) -> tuple[Tensor, int]:
    """Sum of the cross-entropies over masked positions, and their number: what training and evaluation carry.

    Batches hold unequal numbers of masked tokens, so a mean of batch means is not the mean; sums add up.
    """
    masked = _masked(logits, labels)
    scores, targets = logits[masked], labels[masked]
    log_normaliser = torch.logsumexp(scores, dim=-1)
    return (log_normaliser - scores.gather(-1, targets[:, None]).squeeze(-1)).sum(), targets.numel()


@torch.no_grad()
def mlm_loss_grad(
    logits: Float[Tensor, "*batch vocab"], labels: Int[Tensor, "*batch"]
) -> Float[Tensor, "*batch vocab"]:
    """d mlm_loss / d logits in closed form: (softmax - one-hot) / number of masked positions, and 0 elsewhere.

    Raises:
        ValueError: as ``mlm_loss``.
    """
    masked = _masked(logits, labels)
    count = int(masked.sum())
    if count == 0:
        raise ValueError("labels holds no masked position (all are -100), so the loss and its gradient are undefined")
    grad = torch.zeros_like(logits)
    residual = torch.softmax(logits[masked], dim=-1)
    residual[torch.arange(count, device=logits.device), labels[masked]] -= 1
    grad[masked] = residual / count
    return grad


def _masked(logits: Tensor, labels: Tensor) -> Tensor:
    """Where labels are scored, once shapes and labels are known to fit."""
    if logits.shape[:-1] != labels.shape:
        raise ValueError(
            f"logits of shape {tuple(logits.shape)} need labels of shape {tuple(logits.shape[:-1])}, "
            f"got {tuple(labels.shape)}"
        )
    masked = labels != IGNORE
    targets = labels[masked]
    if targets.numel() and not 0 <= int(targets.min()) <= int(targets.max()) < logits.shape[-1]:
        raise ValueError(f"labels must be {IGNORE} or lie in [0, {logits.shape[-1]}), the vocabulary of the logits")
    return masked


def perplexity(nats: float) -> float:
    """exp(loss): the number of equally likely tokens among which the model is as unsure."""
    return math.exp(nats)


def bits_per_token(nats: float) -> float:
    """The loss in bits: nats / ln 2."""
    return nats / math.log(2)


def bits_per_byte(nats: float, bytes_per_token: float) -> float:
    """Bits per byte of *scored* text, the unit in which different tokenizers can be compared."""
    return bits_per_token(nats) / bytes_per_token


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
