"""One step, one epoch, one evaluation of a masked language model: the pieces that a training loop is made of.

``train_epoch`` and ``evaluate`` are the article's two functions made right: they carry (sum, count) and score masked
positions only. ``learning_rate`` is the schedule, ``train_step`` one update on one batch, ``autocast`` its precision.
What this module does not do: loop, save, or stop early (``train.loop``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from sslcourse.data.ignored import IGNORE
from sslcourse.models.encoder import EncoderForMaskedLM
from sslcourse.train.recipe import Recipe


@dataclass(frozen=True)
class Evaluation:
    """Sums over masked positions; the means are derived, so evaluations of parts can be added."""

    loss_sum: float
    correct: int
    count: int

    @property
    def loss(self) -> float:
        """Mean loss in nats per masked position."""
        return self.loss_sum / self.count

    @property
    def accuracy(self) -> float:
        """Share of masked positions whose token is the model's first guess."""
        return self.correct / self.count


def train_epoch(
    model: nn.Module,
    dataset: Dataset,
    batch_size: int,
    optimizer: torch.optim.Optimizer,
    *,
    max_grad_norm: float | None = 1.0,
    generator: torch.Generator | None = None,
) -> float:
    """One pass over a dataset of ``{"input_ids", "attention_mask", "labels"}``; the mean loss over masked positions.

    ``model`` is any masked language model that returns ``.loss`` for ``labels``. Batches hold unequal numbers of
    masked tokens, so each batch's mean is weighted by its count. A batch without a masked token is passed over: it
    has no gradient.

    Raises:
        ValueError: if no batch of the whole pass holds a masked token.
    """
    model.train()
    loss_sum, count = 0.0, 0
    for batch in DataLoader(dataset, batch_size=batch_size, shuffle=True, generator=generator):
        batch = _to(batch, _device(model))
        masked = int((batch["labels"] != IGNORE).sum())
        if masked == 0:
            continue
        optimizer.zero_grad(set_to_none=True)
        loss = model(**batch).loss
        loss.backward()
        if max_grad_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
        optimizer.step()
        loss_sum += loss.item() * masked
        count += masked
    if count == 0:
        raise ValueError("dataset gave no masked position in the whole epoch; raise its mask_rate")
    return loss_sum / count


@torch.no_grad()
def evaluate(model: nn.Module, dataset: Dataset, batch_size: int = 64) -> Evaluation:
    """Loss and accuracy over the masked positions of a dataset; padding and visible tokens do not count.

    Raises:
        ValueError: if no position of the dataset is masked.
    """
    was_training = model.training
    model.eval()
    loss_sum, correct, count = 0.0, 0, 0
    own = torch.Generator()  # a loader without one draws a number from the global generator, which is the caller's
    for batch in DataLoader(dataset, batch_size=batch_size, generator=own):
        batch = _to(batch, _device(model))
        logits = _masked_logits(model, batch)
        targets = batch["labels"][batch["labels"] != IGNORE]
        loss_sum += nn.functional.cross_entropy(logits, targets, reduction="sum").item()
        correct += int((logits.argmax(-1) == targets).sum())
        count += len(targets)
    model.train(was_training)
    if count == 0:
        raise ValueError("dataset holds no masked position, so there is no loss to report; raise its mask_rate")
    return Evaluation(loss_sum, correct, count)


def _masked_logits(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """At masked positions only where the model can do that (this course's), cut out of all logits elsewhere."""
    if hasattr(model, "masked_logits"):
        return model.masked_logits(**batch)
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    return model(**inputs).logits[batch["labels"] != IGNORE].float()


def learning_rate(recipe: Recipe, progress: float) -> float:
    """The rate at ``progress`` (0 to 1 of the budget): up in a line, then down to zero, or level."""
    if progress < recipe.warmup:
        return recipe.learning_rate * progress / recipe.warmup
    left = (1 - min(progress, 1.0)) / (1 - recipe.warmup)
    shape = {"linear": left, "cosine": 0.5 - 0.5 * math.cos(math.pi * left), "constant": 1.0}[recipe.schedule]
    return recipe.learning_rate * shape


def train_step(
    model: EncoderForMaskedLM, optimizer: torch.optim.Optimizer, inputs: Tensor, labels: Tensor, recipe: Recipe
) -> Tensor:
    """One update; the batch's mean loss, still a tensor so that nothing waits for it."""
    with autocast(recipe, inputs.device):
        loss_sum, count = model.masked_loss(inputs, labels, narrow=True)
    loss = loss_sum / max(count, 1)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), recipe.max_grad_norm)
    optimizer.step()
    return loss.detach()


def autocast(recipe: Recipe, device: torch.device) -> Any:
    """bf16 for the matrix products where the recipe asks for it, or, on "auto", where the machine computes in it."""
    if recipe.precision == "bf16" or (recipe.precision == "auto" and has_bf16(device)):
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


def has_bf16(device: torch.device | str = "cpu") -> bool:
    """Whether the device multiplies bf16 matrices in hardware; elsewhere autocast would slow training down."""
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _to(batch: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: value.to(device) for name, value in batch.items()}
