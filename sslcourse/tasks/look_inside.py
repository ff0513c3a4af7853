"""What a model knows, and what an answer rests on: probes of its layers, and integrated gradients.

What this module does not do: claim that a probe shows what the model uses; its lesson shows the difference.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float, Int


def probe(
    vectors: Float[Tensor, "n hidden"], labels: Int[Tensor, " n"], classes: int, penalty: float = 1e-3
) -> Callable[[Float[Tensor, "m hidden"]], Int[Tensor, " m"]]:
    """Fit a multinomial logistic regression on frozen vectors and return its prediction as a function.

    Minimises mean cross-entropy + penalty / 2 · ‖W‖² over standardised vectors, by L-BFGS from zero: convex, so the
    answer has no seed. What such a probe finds is there to be read *linearly*; what it misses may still be there
    (Alain and Bengio 2017, arXiv 1610.01644).

    Raises:
        ValueError: for unequal lengths, vectors that are not finite, or labels outside 0 to ``classes`` - 1.
    """
    if len(vectors) != len(labels) or not len(labels):
        raise ValueError(f"vectors holds {len(vectors)} rows and labels {len(labels)}; give as many, and at least one")
    if not bool(torch.isfinite(vectors).all()):
        raise ValueError("vectors holds nan or inf; look for them in the model's weights")
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise ValueError(f"labels lie in {int(labels.min())} to {int(labels.max())}, outside 0 to {classes - 1}")
    if penalty < 0:
        raise ValueError(f"penalty={penalty} must not be negative")
    vectors, labels = vectors.detach().float(), labels.long()
    mean, spread = vectors.mean(0), vectors.std(0, correction=0).clamp_min(1e-6)
    standard = (vectors - mean) / spread
    weight = torch.zeros(classes, vectors.shape[1], device=vectors.device, requires_grad=True)
    bias = torch.zeros(classes, device=vectors.device, requires_grad=True)
    solver = torch.optim.LBFGS([weight, bias], max_iter=200, tolerance_grad=1e-6, line_search_fn="strong_wolfe")

    def objective() -> Tensor:
        solver.zero_grad()
        loss = F.cross_entropy(standard @ weight.T + bias, labels) + penalty / 2 * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        solver.step(objective)
    weight, bias = weight.detach(), bias.detach()

    def read(other: Float[Tensor, "m hidden"]) -> Int[Tensor, " m"]:
        if not bool(torch.isfinite(other).all()):
            raise ValueError("vectors holds nan or inf; look for them in the model's weights")
        return ((other.float() - mean) / spread @ weight.T + bias).argmax(-1)

    return read


def integrated_gradients(
    function: Callable[[Float[Tensor, steps *shape]], Float[Tensor, " steps"]],
    at: Float[Tensor, "*shape"],
    baseline: Float[Tensor, "*shape"],
    steps: int = 64,
) -> Float[Tensor, "*shape"]:
    """How much each input adds to ``function(at) - function(baseline)``: the gradient's mean along the line between.

    (at - baseline) · mean of the gradient at ``steps`` midpoints. The attributions add up to the difference
    (completeness), up to the rule's error, which falls with 1 / steps² where the function is smooth on that line. It is
    not for a baseline of zeros in front of a LayerNorm, which jumps there: take the embeddings of [MASK]. ``function``
    maps a batch of inputs to a number each. Source: Sundararajan et al. 2017, arXiv 1703.01365, section 3.

    Raises:
        ValueError: for ``steps`` under 1, unequal shapes, values or gradients that are not finite, or a function that
            does not give one number for each input.
    """
    if steps < 1:
        raise ValueError(f"steps={steps} must be at least 1")
    if at.shape != baseline.shape:
        raise ValueError(f"at has shape {tuple(at.shape)} and baseline {tuple(baseline.shape)}; they must be equal")
    share = ((torch.arange(steps, device=at.device, dtype=at.dtype) + 0.5) / steps).view(-1, *[1] * at.ndim)
    points = (baseline + share * (at - baseline)).detach().requires_grad_(True)
    with torch.enable_grad():
        values = function(points)
        if values.shape != (steps,):
            raise ValueError(f"function returned shape {tuple(values.shape)}; it must give one number for each of the "
                             f"{steps} points")  # fmt: skip
        gradient = torch.autograd.grad(values.sum(), points)[0]
        if not bool(torch.isfinite(values).all() and torch.isfinite(gradient).all()):
            raise ValueError("function returned nan or inf, or has such a gradient, between baseline and at")
    return (at - baseline) * gradient.mean(0)
