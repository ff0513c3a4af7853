"""Fine-tuning: a short training run of a body and its head, and what the model then predicts.

    fit(model, examples, Settings(steps=200))
    predicted = predict(model, test_examples)

Every task has its own head and its own way to score; all share one ``fit``. Two hooks, ``backward`` and ``on_step``,
are where ``tasks.robustness`` and ``compress`` come in. What this module does not do: choose hyper-parameters, keep the
best of several evaluations, use several devices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from sslcourse.data.ignored import IGNORE
from sslcourse.tasks.encoding import Batch, Example, collate
from sslcourse.tasks.task_heads import TaskModel, TokenClassifier
from sslcourse.train.loop import Diverged
from sslcourse.train.recipe import Recipe
from sslcourse.train.step import autocast, learning_rate

POOL = 8  # batches that are sorted by length together


@dataclass(frozen=True)
class Settings:
    """How a model is fine-tuned. One rate for body and head; ``layer_decay`` below 1 slows the lower layers."""

    steps: int = 200
    batch_size: int = 16
    learning_rate: float = 1e-3  # a small encoder bears more than 2e-5, which suits large ones (lesson fine_tuning)
    warmup: float = 0.1  # share of the steps; then down to zero in a line
    weight_decay: float = 0.01
    layer_decay: float = 1.0
    max_grad_norm: float = 1.0
    precision: str = "auto"  # as in pretraining.Recipe
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be a whole number, at least 1")
        if not self.max_grad_norm > 0:
            raise ValueError(f"max_grad_norm={self.max_grad_norm} must be positive; math.inf clips nothing")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay={self.layer_decay} must lie in (0, 1]; 1 trains every layer alike")
        self.schedule()

    def schedule(self) -> Recipe:
        """The same numbers as pretraining's recipe, which checks them and knows the schedule."""
        return Recipe(
            learning_rate=self.learning_rate,
            warmup=self.warmup,
            weight_decay=self.weight_decay,
            max_grad_norm=self.max_grad_norm,
            precision=self.precision,
            batch_size=self.batch_size,
            seed=self.seed,
        )


def backward(model: nn.Module, batch: Batch) -> Tensor:
    """Gradients of the batch's loss; returns the loss. Lesson generalization puts other functions in its place."""
    loss = model(**batch).loss
    loss.backward()
    return loss.detach()


def fit(
    model: TaskModel,
    examples: Sequence[Example],
    settings: Settings | None = None,
    *,
    backward: Callable[[nn.Module, Batch], Tensor] = backward,
    on_step: Callable[[int, nn.Module], bool | None] | None = None,
) -> list[float]:
    """Train ``model`` in place for ``settings.steps`` steps and return the losses.

    Batches are drawn without replacement, epoch after epoch, by ``settings.seed``; the same seed, model and examples
    give the same weights on one machine. Parameters that need no gradient stay as they are.

    Args:
        backward: does one batch's forward and backward pass and returns the loss.
        on_step: called after each step with its number, from 1, and the model; true ends the run.

    Raises:
        ValueError: for no examples, a label out of range, a sequence too long for the model, or nothing to train.
        Diverged: at the first loss or gradient that is not finite; the weights are as before that step.
    """
    settings = settings or Settings()
    device = next(model.parameters()).device
    optimizer = make_optimizer(model, settings)
    peaks = [group["lr"] for group in optimizer.param_groups]
    schedule = settings.schedule()
    batches = _batches(examples, settings, _pad_token_id(model))
    losses: list[float] = []
    model.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)  # dropout
        for step in range(1, settings.steps + 1):
            batch = {name: value.to(device) for name, value in next(batches).items()}
            share = learning_rate(schedule, step / (settings.steps + 1)) / settings.learning_rate
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * share
            optimizer.zero_grad(set_to_none=True)
            with autocast(schedule, device):
                loss = float(backward(model, batch))
            if not math.isfinite(loss):
                raise Diverged(
                    f"the loss is {loss} at step {step}: lower learning_rate={settings.learning_rate:g}, or look for "
                    "nan in the inputs and for answers outside their context"
                )
            norm = float(nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm))
            if not math.isfinite(norm):
                raise Diverged(
                    f"the gradient's norm is {norm} at step {step}, though the loss is {loss:.4g}; no step was made. "
                    f"Lower learning_rate={settings.learning_rate:g}, or look for nan in weights and in backward"
                )
            optimizer.step()
            losses.append(loss)
            if on_step and on_step(step, model):
                break
    model.eval()
    return losses


@torch.no_grad()
def predict(model: TaskModel, examples: Sequence[Example], batch_size: int = 64, precision: str = "auto") -> list[Any]:
    """What the model predicts for each example, in order: a class, a class for each scored token, or (first, last).

    Raises:
        ValueError: for no examples, or a model whose scores are nan.
    """
    if not examples:
        raise ValueError("examples is empty: there is nothing to score")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1")
    device, was_training = next(model.parameters()).device, model.training
    model.eval()
    order = sorted(range(len(examples)), key=lambda i: len(examples[i]["input_ids"]))  # little padding
    found: dict[int, Any] = {}
    for begin in range(0, len(order), batch_size):
        places = order[begin : begin + batch_size]
        batch = collate([examples[i] for i in places], _pad_token_id(model))
        labels = batch.pop("labels")
        with autocast(Recipe(precision=precision), device):
            logits = model(**{name: value.to(device) for name, value in batch.items()}).logits
        check_scores(model, logits)
        best = model.best(logits).cpu()
        if isinstance(model, TokenClassifier):
            found |= {i: row[kept].tolist() for i, row, kept in zip(places, best, labels != IGNORE, strict=True)}
        else:
            found |= dict(zip(places, best.tolist(), strict=True))
    model.train(was_training)
    return [found[i] for i in range(len(examples))]


def check_scores(model: TaskModel, logits: Tensor) -> None:
    """ValueError for nan or +inf, which an argmax would turn into an answer."""
    if bool((logits.isnan() | (logits == math.inf)).any()):
        wrong = next((name for name, weight in model.named_parameters() if not bool(weight.isfinite().all())), None)
        where = f"the weight {wrong} holds nan or inf" if wrong else "no weight does, so it arises on the way"
        raise ValueError(f"model={type(model).__name__} gives scores that are nan or inf ({where}); train it again")


def make_optimizer(model: TaskModel, settings: Settings) -> torch.optim.AdamW:
    """AdamW with decay on matrices only; layer ``l`` of ``L`` learns at rate · layer_decay^(L - l), the head at rate.

    Source of the layer-wise rates: Howard and Ruder 2018, arXiv 1801.06146, section 3.2.

    Raises:
        ValueError: if no parameter needs a gradient.
    """
    layers = getattr(model.body.config, "num_hidden_layers", 0)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            depth = _depth(name, layers)
            rate = settings.learning_rate * settings.layer_decay ** (layers + 1 - depth)
            decay = settings.weight_decay if parameter.ndim >= 2 else 0.0
            groups.setdefault((rate, decay), []).append(parameter)
    if not groups:
        raise ValueError("model has no parameter that needs a gradient: there is nothing to train")
    named = [{"params": group, "lr": rate, "weight_decay": decay} for (rate, decay), group in groups.items()]
    return torch.optim.AdamW(named, betas=(0.9, 0.98), fused=True)


def _depth(name: str, layers: int) -> int:
    """0 for embeddings, 1 to ``layers`` for layers, one more for what comes after them."""
    parts = name.split(".")
    for before, part in pairwise(parts):
        if before in ("layers", "layer") and part.isdigit():
            return int(part) + 1
    return 0 if "embeddings" in name else layers + 1


def _batches(examples: Sequence[Example], settings: Settings, pad_token_id: int) -> Iterator[Batch]:
    """Epoch after epoch in a random order; within a pool of batches, sentences of like length stand together.

    A batch is padded to its longest sentence, so this halves the work and leaves the order of batches random.
    """
    if not examples:
        raise ValueError("examples is empty: there is nothing to train on")
    generator = torch.Generator().manual_seed(settings.seed)
    size = min(settings.batch_size, len(examples))
    lengths = [len(example["input_ids"]) for example in examples]
    while True:
        order = torch.randperm(len(examples), generator=generator).tolist()
        order = order[: len(order) // size * size]
        for begin in range(0, len(order), POOL * size):
            pool = order[begin : begin + POOL * size]
            if len(pool) > size:
                pool.sort(key=lengths.__getitem__)
            for place in torch.randperm(len(pool) // size, generator=generator).tolist():
                yield collate([examples[i] for i in pool[place * size : (place + 1) * size]], pad_token_id)


def _pad_token_id(model: TaskModel) -> int:
    return getattr(model.body.config, "pad_token_id", None) or 0


def trained_parameters(model: nn.Module) -> int:
    """How many weights a step changes."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
