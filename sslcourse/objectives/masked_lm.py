"""The masked-language-modelling loss and its gradient in closed form, and the units that a loss is told in.

Logits are scored at the labelled positions only. ``perplexity``, ``bits_per_token`` and ``bits_per_byte`` say the same
loss in other units. What this module does not do: models, or training; the update rules that use the gradient are in
``train.update_rules``.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sslcourse.data.ignored import IGNORE

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
