"""Fewer weights: masks that set some to zero, at once, gradually or by movement, and how the zeros are held.

    masks = magnitude_masks(prunable(model), 0.8)                  # which weights stay: the largest fifth
    fit(model, examples, settings, on_step=Hold(model, masks))     # recover, with the zeros held

A mask leaves the matrices as large as they were, so nothing gets faster; what ``compress.removal`` takes out is gone
from the sums. What this module does not do: sparse kernels (``torch.sparse`` has them), 2:4 on a GPU
(``torch.sparse.to_sparse_semi_structured``), pruning by second derivatives.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor, nn

from sslcourse.tasks.encoding import Batch

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

Masks = dict[str, Tensor]  # a parameter's name -> True where its weights stay
TARGETS = ("Wqkv", "Wi", "Wo")


def prunable(model: nn.Module, targets: Sequence[str] = TARGETS) -> dict[str, nn.Parameter]:
    """The matrices of the layers by name. Embeddings, norms and heads are left out: few weights, or looked up.

    Raises:
        ValueError: if no matrix has such a name.
    """
    found = {f"{name}.weight": module.weight for name, module in model.named_modules()
             if isinstance(module, nn.Linear) and name.rpartition(".")[2] in targets}  # fmt: skip
    if not found:
        raise ValueError(f"targets={tuple(targets)} name no matrix of {type(model).__name__}; see named_modules()")
    return found


def magnitude_masks(weights: Mapping[str, Tensor], sparsity: float, scope: str = "global") -> Masks:
    """Keep the weights of largest absolute value (Han et al. 2015, arXiv 1506.02626). See ``keep_largest``."""
    return keep_largest({name: weight.detach().abs() for name, weight in weights.items()}, sparsity, scope)


def random_masks(weights: Mapping[str, Tensor], sparsity: float, seed: int = 0) -> Masks:
    """Keep weights drawn by lot: the baseline that any score of importance has to beat."""
    generator = torch.Generator().manual_seed(seed)
    return keep_largest({name: torch.rand(weight.shape, generator=generator) for name, weight in weights.items()},
                        sparsity)  # fmt: skip


def keep_largest(scores: Mapping[str, Tensor], sparsity: float, scope: str = "global") -> Masks:
    """Keep the weights with the largest scores; exactly round(sparsity · n) go, and of equals the earlier stays.

    Args:
        sparsity: the share of zeros, 0 to 1. ``round`` is Python's, as in ``torch.nn.utils.prune``.
        scope: "global" ranks all tensors together, "layer" each by itself, with the same sparsity.

    Raises:
        ValueError: for no tensors, a sparsity outside [0, 1], an unknown scope, or scores that are nan or inf.
    """
    if not scores:
        raise ValueError("scores is empty: there is nothing to prune; see prunable")
    check_share("sparsity", sparsity)
    if scope not in ("global", "layer"):
        raise ValueError(f"scope={scope!r} is unknown; choose 'global' (all matrices together) or 'layer'")
    for name, score in scores.items():
        if not bool(torch.isfinite(score).all()):
            raise ValueError(f"{name} holds nan or inf, which cannot be ranked; train the model again")
    if scope == "layer":
        return {name: _largest(score.flatten(), sparsity).view(score.shape) for name, score in scores.items()}
    flat = _largest(torch.cat([score.flatten() for score in scores.values()]), sparsity)
    parts = flat.split([score.numel() for score in scores.values()])
    return {name: part.view(score.shape) for (name, score), part in zip(scores.items(), parts, strict=True)}


def _largest(scores: Float[Tensor, " n"], sparsity: float) -> Bool[Tensor, " n"]:
    keep = len(scores) - round(sparsity * len(scores))
    if not keep:
        return torch.zeros_like(scores, dtype=torch.bool)
    least = scores.topk(keep, sorted=False).values.min()  # topk breaks ties as it likes
    mask = scores > least
    mask[(scores == least).nonzero().squeeze(1)[: keep - int(mask.sum())]] = True
    return mask


def n_of_m_mask(weight: Float[Tensor, "*rows inputs"], n: int = 2, m: int = 4) -> Bool[Tensor, "*rows inputs"]:
    """Keep the ``n`` largest of every ``m`` neighbours along the input dimension; of equals the earlier stays.

    2 of 4 is the pattern that sparse tensor cores multiply (Mishra et al. 2021, arXiv 2104.08378).

    Raises:
        ValueError: if ``m`` does not divide the width, ``n`` is not in [0, m], or a weight is nan or inf.
    """
    if m < 1 or not 0 <= n <= m:
        raise ValueError(f"n={n} of m={m} cannot be kept; n must lie between 0 and m, and m be at least 1")
    if weight.shape[-1] % m:
        raise ValueError(f"weight has {weight.shape[-1]} inputs, which groups of m={m} do not divide; leave it dense")
    if not bool(torch.isfinite(weight).all()):
        raise ValueError("weight holds nan or inf, which cannot be ranked; train the model again")
    groups = weight.detach().abs().unflatten(-1, (-1, m))
    kept = groups.sort(dim=-1, descending=True, stable=True).indices[..., :n]
    return torch.zeros_like(groups, dtype=torch.bool).scatter(-1, kept, True).flatten(-2)


def sparsity_of(tensors: Mapping[str, Tensor]) -> float:
    """The share of zeros in weights or masks, all together."""
    return sum(int((one == 0).sum()) for one in tensors.values()) / sum(one.numel() for one in tensors.values())


def kept_energy(weights: Mapping[str, Tensor], masks: Masks) -> float:
    """The share of the sum of squares that lies in the weights that stay."""
    squares = {name: weight.detach().double().square() for name, weight in weights.items()}
    return float(sum(one[masks[name]].sum() for name, one in squares.items())
                 / sum(one.sum() for one in squares.values()))  # fmt: skip


def check_share(name: str, value: float) -> None:
    """ValueError unless ``value`` is a number from 0 to 1."""
    if not 0 <= value <= 1:  # false for nan, too
        raise ValueError(f"{name}={value} is a share of the weights; it must lie in [0, 1]")


@torch.no_grad()
def apply_masks(model: nn.Module, masks: Masks) -> None:
    """Set to zero, in place, what the masks leave out.

    Raises:
        ValueError: for a mask whose name or shape is not one of the model's, before anything is changed.
    """
    parameters = dict(model.named_parameters())
    for name, mask in masks.items():
        if name not in parameters or parameters[name].shape != mask.shape:
            raise ValueError(f"masks[{name!r}] of shape {tuple(mask.shape)} fits no weight of this model; make the "
                             "masks from prunable(model)")  # fmt: skip
    for name, mask in masks.items():
        parameters[name].mul_(mask)


class Hold:
    """``on_step``: zeros stay zero. The optimiser moves every weight, masked or not; this puts them back."""

    def __init__(self, model: nn.Module, masks: Masks) -> None:
        self.masks = masks
        apply_masks(model, masks)

    def __call__(self, step: int, model: nn.Module) -> None:
        apply_masks(model, self.masks)


def cubic(step: int, last: int, final: float, first: int = 0, initial: float = 0.0) -> float:
    """Sparsity at ``step``: from ``initial`` at ``first`` to ``final`` at ``last``, fast at first, then ever slower.

    final + (initial - final) · (1 - (step - first) / (last - first))³. While most weights are idle many may go at
    once; towards the end each one hurts (Zhu and Gupta 2017, arXiv 1710.01878, section 3).
    """
    check_share("final", final)
    check_share("initial", initial)
    if not first < last:
        raise ValueError(f"first={first} must come before last={last}, both in steps")
    done = min(max((step - first) / (last - first), 0.0), 1.0)
    return final + (initial - final) * (1 - done) ** 3


class Gradual:
    """``on_step``: magnitude masks drawn anew every ``every`` steps, their sparsity by ``cubic`` until ``last``."""

    def __init__(self, sparsity: float, last: int, first: int = 0, every: int = 5, scope: str = "global") -> None:
        if every < 1:
            raise ValueError(f"every={every} must be at least 1 step")
        cubic(0, last, sparsity, first)  # refuses what it cannot follow, before any training
        self.sparsity, self.last, self.first, self.every, self.scope = sparsity, last, first, every, scope
        self.masks: Masks = {}

    def draw(self, step: int, scores: Mapping[str, Tensor]) -> None:
        """New masks, if this step is one for them."""
        if self.first <= step <= self.last and (step % self.every == 0 or step == self.last):
            self.masks = keep_largest(scores, cubic(step, self.last, self.sparsity, self.first), self.scope)

    def __call__(self, step: int, model: nn.Module) -> None:
        self.draw(step, {name: weight.detach().abs() for name, weight in prunable(model).items()})
        apply_masks(model, self.masks)


class Movement(Gradual):
    """Keep the weights that training moves away from zero, large or small (Sanh et al. 2020, arXiv 2005.07683).

        movement = Movement(0.9, last=150)
        fit(model, examples, settings, backward=movement.backward, on_step=movement)
        movement.finish(model)

    The forward pass uses W' = W · mask. Each weight's score moves against W · dL/dW', the gradient of a score that
    multiplied the weight (straight through the mask, so masked weights are scored, too, and can come back). The mask
    keeps the largest scores (hard top-v) at a sparsity that rises by ``cubic``.

    As in the paper's own code Adam scales a score's steps, and the mask is drawn anew at every step. Both are needed
    in a short training: with plain sums, which the first, large gradients rule, or with a mask that changes by leaps
    every fifth step, some seeds were lost altogether.
    """

    def __init__(self, sparsity: float, last: int, first: int = 0, every: int = 1, scope: str = "global") -> None:
        super().__init__(sparsity, last, first, every, scope)
        self.scores: dict[str, Tensor] = {}
        self.adam: torch.optim.Optimizer | None = None

    def backward(self, model: nn.Module, batch: Batch) -> Tensor:
        """One batch through the masked model; the gradients of masked weights are zero."""
        weights = prunable(model)
        if self.adam is None:
            self.scores = {name: torch.zeros_like(weight) for name, weight in weights.items()}
            self.adam = torch.optim.Adam(self.scores.values(), lr=1.0)  # only the order of scores matters
        whole = {name: weight.detach().clone() for name, weight in weights.items()}
        apply_masks(model, self.masks)
        loss = model(**batch).loss
        loss.backward()
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(whole[name])
                self.scores[name].grad = weight * weight.grad
                if name in self.masks:
                    weight.grad *= self.masks[name]
        self.adam.step()
        return loss.detach()

    def __call__(self, step: int, model: nn.Module) -> None:
        self.draw(step, self.scores)  # the weights stay whole until ``finish``: a masked one may come back

    def finish(self, model: nn.Module) -> None:
        """Set the masked weights to zero for good."""
        if not self.masks:
            raise ValueError("there are no masks yet: the run ended before the first were drawn; train for more steps")
        apply_masks(model, self.masks)


class Bytes(NamedTuple):
    """What the same weights take on disk."""

    dense: int  # safetensors
    zipped: int  # the same file through zlib
    csr: int  # by formula: values and column numbers of what is not zero, and where each row begins


def stored_bytes(weights: Mapping[str, Tensor]) -> Bytes:
    """Bytes of some matrices as a dense file, as a compressed one, and in compressed sparse rows."""
    whole = save({name: weight.detach().contiguous() for name, weight in weights.items()})
    csr = sum(csr_bytes(len(weight), int((weight != 0).sum())) for weight in weights.values())
    return Bytes(len(whole), len(zlib.compress(whole)), csr)


def csr_bytes(rows: int, nonzero: int, value_bytes: int = 4, index_bytes: int = 4) -> int:
    """Compressed sparse rows: a value and a column number for each non-zero, and rows + 1 beginnings."""
    return nonzero * (value_bytes + index_bytes) + (rows + 1) * index_bytes
