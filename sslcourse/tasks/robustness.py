"""What may make a fine-tuned model hold on text that it has not seen.

    fit(model, examples, settings, backward=augmented(drop_tokens(tokenizer, 0.1)))   # worse inputs
    fit(model, examples, settings, backward=adversarial(0.05))                        # worst inputs
    fit(model, examples, settings, on_step=KeepBest(score, every=20))                 # early stopping
    fit(model, examples, settings, on_step=WeightAverage(first_step=60))              # the mean of the last weights

Each fits into one of ``fitting.fit``'s two hooks, so each can be measured alone. Then ``continue_pretraining``, on text
of the kind that a task will meet.

What this module does not do: search hyper-parameters (its lesson hands that to Optuna), or choose among the above.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sslcourse.data import tokenizer as wordpiece
from sslcourse.data.ignored import IGNORE
from sslcourse.models.encoder import EncoderForMaskedLM
from sslcourse.objectives import masking
from sslcourse.tasks.encoding import Batch, Example, collate
from sslcourse.tasks.fitting import backward, check_scores
from sslcourse.tasks.pretrained_bodies import check_pair
from sslcourse.tasks.task_heads import SpanPredictor, TaskModel, positions
from sslcourse.train import loop, optimizers
from sslcourse.train.recipe import Recipe
from sslcourse.train.step import learning_rate, train_step
from sslcourse.train.token_rows import Tape

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from transformers import PreTrainedTokenizerFast

Backward = Callable[[nn.Module, Batch], Tensor]
Change = Callable[["Int[Tensor, 'batch seq']"], "Int[Tensor, 'batch seq']"]  # another input, of the same length


def augmented(change: Change) -> Backward:
    """A ``backward`` for ``fit`` that trains on changed ids. Lengths stay, so tags stay at their places."""

    def changed(model: nn.Module, batch: Batch) -> Tensor:
        ids = batch["input_ids"]  # the draws are made on the CPU, so that a GPU trains on the same ones
        return backward(model, {**batch, "input_ids": change(ids.cpu()).to(ids.device)})

    return changed


def drop_tokens(tokenizer: PreTrainedTokenizerFast, rate: float, seed: int = 0) -> Change:
    """Each ordinary token becomes [MASK] with probability ``rate``: word dropout, by a token the encoder knows.

    Source: Dai and Le 2015, arXiv 1511.01432, section 4.1 (word dropout).
    """
    _check_rate(rate)
    generator = torch.Generator().manual_seed(seed)

    def change(ids: Tensor) -> Tensor:
        hidden = masking.select_tokens(ids, _special(tokenizer, ids), mask_rate=rate, generator=generator)
        return ids.masked_fill(hidden, tokenizer.mask_token_id)

    return change


def drop_spans(tokenizer: PreTrainedTokenizerFast, rate: float, seed: int = 0) -> Change:
    """As ``drop_tokens``, in runs of about three tokens, so that a neighbour cannot give the hidden one away.

    Source: Joshi et al. 2020, SpanBERT, arXiv 1907.10529, section 3.1.
    """
    _check_rate(rate)
    generator = torch.Generator().manual_seed(seed)

    def change(ids: Tensor) -> Tensor:
        hidden = masking.select_spans(_special(tokenizer, ids), mask_rate=rate, generator=generator)
        return ids.masked_fill(hidden, tokenizer.mask_token_id)

    return change


def replace_tokens(
    language_model: EncoderForMaskedLM, tokenizer: PreTrainedTokenizerFast, rate: float, seed: int = 0
) -> Change:
    """Tokens are masked and replaced by a draw from what the language model expects there.

    It stands in for a lexicon of synonyms, none of which ships with Python: the model proposes a word that *fits*,
    which need not mean the same. Source: Kobayashi 2018, arXiv 1805.06201, without its label-conditioned model.
    """
    _check_rate(rate)
    check_pair(language_model.model, tokenizer)
    generator = torch.Generator().manual_seed(seed)
    language_model = copy.deepcopy(language_model).cpu().eval()  # the encoder that is being trained is another one

    @torch.no_grad()
    def change(ids: Tensor) -> Tensor:
        special = _special(tokenizer, ids)
        chosen = masking.select_tokens(ids, special, mask_rate=rate, generator=generator)
        if not bool(chosen.any()):
            return ids
        labels = ids.masked_fill(~chosen, IGNORE)
        hidden = ids.masked_fill(chosen, tokenizer.mask_token_id)
        logits = language_model.masked_logits(hidden, labels, attention_mask=ids != tokenizer.pad_token_id)
        logits[:, tokenizer.all_special_ids] = -math.inf
        drawn = torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(1)
        return ids.masked_scatter(chosen, drawn)

    return change


def _special(tokenizer: PreTrainedTokenizerFast, ids: Tensor) -> Tensor:
    return torch.isin(ids, torch.tensor(tokenizer.all_special_ids, device=ids.device))


def _check_rate(rate: float) -> None:
    if not 0 <= rate < 1:
        raise ValueError(f"rate={rate} is a share of the tokens; it must lie in [0, 1)")


def adversarial(epsilon: float, steps: int = 1) -> Backward:
    """A ``backward`` for ``fit``: the loss of the batch plus its loss where the embeddings were moved to raise it most.

    One step is the fast gradient method (Miyato et al. 2017, arXiv 1605.07725, section 3); more are projected gradient
    ascent, each of ``epsilon / steps`` · 1.5 and pulled back into the ball (Madry et al. 2018, arXiv 1706.06083, 2.1).
    The weights are not touched: the shift is added behind the embedding table, for one pass.

    Args:
        epsilon: length of the shift as a share of the length of the sequence's own embeddings, so that it means the
            same for any model.

    Raises:
        ValueError: for an ``epsilon`` that is not positive and finite, or ``steps`` under 1.
    """
    if not 0 < epsilon < math.inf:
        raise ValueError(f"epsilon={epsilon} must be positive and finite; it is a share of the embeddings' length")
    if steps < 1:
        raise ValueError(f"steps={steps} must be at least 1")

    def attacked(model: nn.Module, batch: Batch) -> Tensor:
        real = batch["attention_mask"].bool()
        with shifted(model, None) as seen:
            clean = model(**batch).loss
        clean.backward()  # the batch's own gradients; those of the shifted batch are added below
        rows, gradient = seen["rows"].detach(), seen["rows"].grad
        radius = epsilon * _length(rows, real)
        shift = torch.zeros_like(rows)
        for step in range(steps):
            if step:
                moving = shift.requires_grad_(True)
                with shifted(model, moving):
                    gradient = torch.autograd.grad(model(**batch).loss, moving)[0]
            size = radius if steps == 1 else 1.5 * radius / steps
            shift = within(shift.detach() + ascent(gradient, real, size), real, radius)
        with shifted(model, shift):
            model(**batch).loss.backward()
        return clean.detach()

    return attacked


def ascent(gradient: Float[Tensor, "batch seq hidden"], real: Tensor, size: Tensor | float) -> Tensor:
    """A shift of length ``size`` along each sequence's gradient; none at padding, none where the gradient is zero."""
    gradient = gradient * real[..., None]
    return size * gradient / _length(gradient, real).clamp_min(torch.finfo(gradient.dtype).tiny)


def within(shift: Float[Tensor, "batch seq hidden"], real: Tensor, radius: Tensor | float) -> Tensor:
    """``shift``, shortened to ``radius`` where a sequence's is longer."""
    length = _length(shift, real)
    return shift * (radius / length.clamp_min(torch.finfo(shift.dtype).tiny)).clamp_max(1.0)


def _length(rows: Tensor, real: Tensor) -> Float[Tensor, "batch 1 1"]:
    """Euclidean length of each sequence's rows together, padding left out."""
    return (rows * real[..., None]).flatten(1).norm(dim=1)[:, None, None]


@contextmanager
def shifted(model: nn.Module, shift: Tensor | None) -> Iterator[dict[str, Tensor]]:
    """While it is open, ``shift`` is added to what the embedding table gives; ``["rows"]`` is that sum, with grad."""
    seen: dict[str, Tensor] = {}

    def add(module: nn.Module, inputs: tuple, rows: Tensor) -> Tensor:
        rows = rows if shift is None else rows + shift
        if not rows.requires_grad:  # the table is frozen, as under LoRA
            rows = rows.detach().requires_grad_(True)
        rows.retain_grad()
        seen["rows"] = rows
        return rows

    handle = model.body.get_input_embeddings().register_forward_hook(add)
    try:
        yield seen
    finally:
        handle.remove()


class KeepBest:
    """Early stopping, as ``on_step``: remembers the weights with the best score, stops when none is better for long.

    Args:
        score: maps the model to a number, higher being better, from *validation* examples.
        every: steps between two scores.
        patience: scores in a row without a better one after which the run ends; ``None`` never ends it.
    """

    def __init__(self, score: Callable[[nn.Module], float], every: int, patience: int | None = None) -> None:
        if every < 1:
            raise ValueError(f"every={every} must be at least 1 step")
        if patience is not None and patience < 1:
            raise ValueError(f"patience={patience} must be at least 1 score, or None")
        self.score, self.every, self.patience = score, every, patience
        self.history: list[tuple[int, float]] = []
        self.best: dict[str, Tensor] = {}

    def __call__(self, step: int, model: nn.Module) -> bool:
        if step % self.every:
            return False
        value = self.score(model)
        if not math.isfinite(value):
            raise ValueError(f"score returned {value} at step {step}; early stopping needs a finite number")
        if not self.history or value > max(score for _, score in self.history):
            self.best = _state(model)
        self.history.append((step, value))
        scores = [score for _, score in self.history]
        return self.patience is not None and len(scores) - 1 - scores.index(max(scores)) >= self.patience

    def restore(self, model: nn.Module) -> None:
        """Put the best weights into ``model``."""
        if not self.best:
            raise ValueError(f"no score was taken: the run had fewer than every={self.every} steps")
        model.load_state_dict(self.best)


class WeightAverage:
    """The running mean of the weights after each step from ``first_step`` on, as ``on_step``.

    Source: Izmailov et al. 2018, arXiv 1803.05407, algorithm 1, with an average at every step.
    """

    def __init__(self, first_step: int = 1) -> None:
        if first_step < 1:
            raise ValueError(f"first_step={first_step} must be at least 1")
        self.first_step, self.count = first_step, 0
        self.mean: dict[str, Tensor] = {}

    def __call__(self, step: int, model: nn.Module) -> None:
        if step >= self.first_step:
            self.count += 1
            if not self.mean:
                self.mean = _state(model)
            for name, value in model.state_dict().items():
                if value.is_floating_point():
                    self.mean[name] += (value - self.mean[name]) / self.count

    def restore(self, model: nn.Module) -> None:
        """Put the mean into ``model``."""
        if not self.mean:
            raise ValueError(f"nothing was averaged: the run ended before first_step={self.first_step}")
        model.load_state_dict(self.mean)


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


@torch.no_grad()
def probabilities(
    model: TaskModel, examples: Sequence[Example], batch_size: int = 64
) -> list[Float[Tensor, "scored classes"]]:
    """For each example its classes' probabilities, [scored tokens, classes], or [1, classes] for one class a text.

    Means of these over several models are a seed ensemble.

    Raises:
        ValueError: for no examples, a model whose outputs are not classes, or one whose scores are nan.
    """
    if not examples:
        raise ValueError("examples is empty: there is nothing to score")
    if isinstance(model, SpanPredictor):
        raise ValueError(f"model={type(model).__name__} scores positions, not classes; average its logits yourself")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1")
    found: list[Tensor] = []
    device, was_training = next(model.parameters()).device, model.training
    model.eval()
    for begin in range(0, len(examples), batch_size):
        batch = collate(examples[begin : begin + batch_size], getattr(model.body.config, "pad_token_id", None) or 0)
        labels = batch.pop("labels")
        logits = model(**{name: value.to(device) for name, value in batch.items()}).logits
        check_scores(model, logits)
        chances = logits.softmax(-1).cpu()
        rows = chances if chances.ndim == 3 else chances[:, None]
        labels = labels if chances.ndim == 3 else labels[:, None]
        found += [row[kept != IGNORE] for row, kept in zip(rows, labels, strict=True)]
    model.train(was_training)
    return found


def continue_pretraining(
    model: EncoderForMaskedLM,
    tokenizer: PreTrainedTokenizerFast,
    texts: Sequence[str],
    recipe: Recipe,
    steps: int,
    *,
    old_texts: Sequence[str] = (),
    old_share: float = 0.0,
) -> list[float]:
    """Go on training ``model``, in place, on text of another kind, and return the losses.

    ``old_share`` of each batch's rows comes from ``old_texts``: replay, the plainest remedy against forgetting.
    The recipe's sizes of the network are not used; its batch, rate, schedule, masks and seed are.

    Source: Gururangan et al. 2020, arXiv 2004.10964 (domain-adaptive pretraining).

    Raises:
        ValueError: for no text, a tokenizer that is not the model's, a share outside [0, 1), or one without old texts.
        Diverged: at the first loss that is not finite.
    """
    check_pair(model.model, tokenizer)
    if not texts:
        raise ValueError("texts is empty: there is nothing to train on")
    if steps < 1:
        raise ValueError(f"steps={steps} must be at least 1")
    if recipe.sequence_length > positions(model.model):
        raise ValueError(f"recipe.sequence_length={recipe.sequence_length} is more than the model's "
                         f"{positions(model.model)} positions (max_position_embeddings); use fewer")  # fmt: skip
    if not 0 <= old_share < 1:
        raise ValueError(f"old_share={old_share} is a share of each batch; it must lie in [0, 1)")
    old_rows = round(old_share * recipe.batch_size)
    if old_share and (not old_texts or not 0 < old_rows < recipe.batch_size):
        raise ValueError(f"old_share={old_share} of batch_size={recipe.batch_size} needs old_texts, and a row or more "
                         "of old and of new text")  # fmt: skip
    recipe = Recipe(**{**vars(recipe), "vocab_size": len(tokenizer)})
    parts = [_rows(texts, tokenizer, recipe, recipe.batch_size - old_rows)]
    if old_rows:
        parts.append(_rows(old_texts, tokenizer, recipe, old_rows))
    optimizer = optimizers.make_optimizer(model, recipe)
    losses, device = [], next(model.parameters()).device
    model.train()
    for step in range(1, steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe, step / (steps + 1))
        inputs, labels = (torch.cat(column).to(device) for column in zip(*map(next, parts), strict=True))
        loss = float(train_step(model, optimizer, inputs, labels, recipe))
        if not math.isfinite(loss):
            raise loop.Diverged(f"the loss is {loss} at step {step}: lower learning_rate={recipe.learning_rate}")
        losses.append(loss)
    model.eval()
    if not all(bool(weight.isfinite().all()) for weight in model.parameters()):
        raise loop.Diverged(f"a weight is not finite after {steps} steps: lower {recipe.learning_rate=}")
    return losses


def _rows(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerFast, recipe: Recipe, rows: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Masked batches of ``rows`` rows, without end."""
    tape = Tape(wordpiece.encode(tokenizer, texts), tokenizer, recipe.sequence_length)
    if len(tape) < rows:
        raise ValueError(f"the texts give {len(tape)} rows of {recipe.sequence_length} tokens, too few for {rows}")
    return tape.batches(Recipe(**{**vars(recipe), "batch_size": rows}))
