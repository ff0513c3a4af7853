"""How far activations reach, seen on calibration data, and SmoothQuant, which moves what is hard to round into weights.

    reach = observe(model, batches)
    smooth(norm, linear, reach)

What this module does not do: choose the calibration data.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sslcourse.compress.int8_copies import _leaves

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass
class Reach:
    """What the inputs of a module were, over all batches."""

    low: float = math.inf
    high: float = -math.inf
    channels: Float[Tensor, " inputs"] | None = None  # the largest absolute value of each

    def see(self, x: Float[Tensor, "... inputs"]) -> None:
        self.low, self.high = min(self.low, float(x.min())), max(self.high, float(x.max()))
        most = x.flatten(0, -2).abs().amax(0)
        self.channels = most if self.channels is None else torch.maximum(self.channels, most)


@torch.no_grad()
def observe(
    model: nn.Module, batches: Iterable[Mapping[str, Tensor]], tokenizer: Any | None = None
) -> dict[str, Reach]:
    """Name -> what came into every ``nn.Linear`` while the model read the calibration batches.

    Raises:
        ValueError: for no batches, ids that are not in the model's table, or a tokenizer that is not the model's.
    """
    batches = list(batches)
    check_calibration(batches, _rows(model), tokenizer)
    seen: dict[str, Reach] = {name: Reach() for name, one in _leaves(model).items() if isinstance(one, nn.Linear)}
    hooks = [model.get_submodule(name).register_forward_pre_hook(lambda _, x, reach=reach: reach.see(x[0]))
             for name, reach in seen.items()]  # fmt: skip
    was_training = model.training
    try:
        model.eval()
        for batch in batches:
            model(**batch)
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    return {name: reach for name, reach in seen.items() if reach.channels is not None}


def _rows(model: nn.Module) -> int:
    body = getattr(model, "body", model)
    return body.get_input_embeddings().num_embeddings


def check_calibration(batches: Sequence[Mapping[str, Tensor]], rows: int, tokenizer: Any | None = None) -> None:
    """ValueError for calibration data that cannot be the model's own."""
    if not batches:
        raise ValueError("batches is empty: calibration needs text; a few dozen rows of the training data will do")
    if tokenizer is not None and not 0 <= rows - len(tokenizer) < 64:
        raise ValueError(f"tokenizer has {len(tokenizer)} pieces and the model's table {rows} rows: the calibration "
                         "data is of another tokenizer; open both from one folder")  # fmt: skip
    for number, batch in enumerate(batches):
        ids = batch["input_ids"]
        if int(ids.min()) < 0 or int(ids.max()) >= rows:
            raise ValueError(f"batches[{number}] holds id {int(ids.max())}, and the model's table has {rows} rows: the "
                             "calibration data was encoded by another tokenizer; use the model's own")  # fmt: skip


def smoothing(
    weight: Float[Tensor, "outputs inputs"], reach: Float[Tensor, " inputs"], alpha: float = 0.5
) -> Float[Tensor, " inputs"]:
    """What to divide activations by, and multiply weights with, channel by channel: max|x|^α / max|w|^(1-α).

    Source: Xiao et al. 2023, SmoothQuant, arXiv 2211.10438, equation 4.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha={alpha} must lie in [0, 1]: 0 leaves all to the activations, 1 all to the weights")
    columns = weight.abs().amax(0)
    factors = reach**alpha / columns ** (1 - alpha)
    return torch.where((reach > 0) & (columns > 0), factors, torch.ones_like(factors))


@torch.no_grad()
def smooth(norm: nn.LayerNorm, linear: nn.Linear, reach: Float[Tensor, " inputs"], alpha: float = 0.5) -> None:
    """Divide what ``norm`` gives by the factors and multiply the columns of ``linear`` with them, in place.

    The two together compute what they did. ``linear`` must be all that reads ``norm``.
    """
    factors = smoothing(linear.weight, reach, alpha)
    norm.weight /= factors
    if norm.bias is not None:
        norm.bias /= factors
    linear.weight *= factors
