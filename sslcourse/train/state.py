"""Where a pretraining run stands, in memory: how far, how well, and the last good state to go back to.

``State`` is what is not in the model or the optimiser, with the judgement whether the loss has jumped; ``Snapshot`` is
weights and optimiser of the last good moment. What this module does not do: touch the disk (``train.checkpoint``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn

WINDOW = 8  # steps whose losses are judged together
SPIKE = 1.0  # nats above the lowest window so far, or four times the steps' own noise if that is more
CHANCES = 3  # times that a run may go back to the same state


@dataclass
class State:
    """Where a run stands; all of it is in a checkpoint."""

    budget: dict[str, Any]
    step: int = 0
    seconds: float = 0.0
    tokens: int = 0
    skipped: int = 0  # batches that led to a state that was given up; they are not read again
    history: list[dict[str, float]] = field(default_factory=list)
    restores: list[dict[str, Any]] = field(default_factory=list)
    best_loss: float = math.inf
    without_gain: int = 0
    loss_sum: float = 0.0  # of the steps since the last evaluation
    loss_count: int = 0
    recent: list[float] = field(default_factory=list)  # losses that no window has judged yet
    lowest: float = math.inf  # median loss of a window; at first, what knowing nothing costs
    noise: float = 0.0  # of a step's loss about its window's mean
    best: dict[str, Tensor] = field(default_factory=dict)
    pending: list[Tensor] = field(default_factory=list)  # losses that may still be on their way from the device

    def progress(self, after: int = 0) -> float:
        """Share of the budget used, ``after`` so many more steps where steps are what counts."""
        if self.budget["steps"] is not None:
            return (self.step + after) / (self.budget["steps"] + 1)  # + 1: the last step's rate is small, not zero
        return self.seconds / (60 * self.budget["minutes"])

    def finished(self) -> str:
        """Why the run is over, or an empty string."""
        if self.budget["patience"] is not None and self.without_gain >= self.budget["patience"]:
            return "patience"
        if self.budget["steps"] is not None:
            return "steps" if self.step >= self.budget["steps"] else ""
        return "minutes" if self.seconds >= 60 * self.budget["minutes"] else ""

    def evaluation_due(self) -> bool:
        """At equal distances over the budget, the last at its end."""
        done = len(self.history)
        used = self.step / self.budget["steps"] if self.budget["steps"] is not None else self.progress()
        return done < self.budget["evaluations"] and used >= (done + 1) / self.budget["evaluations"]

    def after_step(self, loss: Tensor, tokens: int, seconds: float) -> None:
        self.step += 1
        self.tokens += tokens
        self.seconds += seconds
        self.pending.append(loss)

    def trouble(self) -> str:
        """What is wrong with the training loss, or an empty string; judged every few steps and at an evaluation.

        A loss that is no number stays so. A spike is a window of eight steps whose median lies a nat above the lowest
        median so far, or four times the noise of single steps if that is more. The median, because one strange row
        in a small batch is no spike. (Chowdhery et al. 2022, PaLM, arXiv 2204.02311, section 5.1, went back and
        skipped batches as well, by hand.)
        """
        if self.step % WINDOW and not self.evaluation_due():
            return ""
        self.settle()
        if not all(map(math.isfinite, self.recent)):
            return "the training loss is no finite number"
        while len(self.recent) >= WINDOW:
            window = torch.tensor(self.recent[:WINDOW], dtype=torch.float64)
            self.recent = self.recent[WINDOW:]
            median, noise = window.quantile(0.5).item(), window.std().item()
            if median > self.lowest + max(SPIKE, 4 * self.noise):
                return f"the training loss rose from {self.lowest:.2f} to {median:.2f} nats"
            self.noise = 0.9 * self.noise + 0.1 * noise if self.noise else noise
            self.lowest = min(self.lowest, median)
        return ""

    def jumped(self, loss: float, held_out: float) -> str:
        """What is wrong with the state that an evaluation saw, or an empty string.

        Args:
            loss: of the last batches by the weights as they are now. The steps' own losses are those of weights before
                an update, so the last update may have ruined what would be kept as a good state. (The held-out loss
                cannot tell: it also rises when a small text is learnt by heart.)
        """
        if not math.isfinite(loss) or not math.isfinite(held_out):
            return "the loss at an evaluation is no finite number"
        if loss > self.lowest + max(SPIKE, 6 * self.noise):  # of few batches, so there is more noise
            return f"the training loss rose from {self.lowest:.2f} to {loss:.2f} nats"
        return ""

    def settle(self) -> None:
        """Wait for the losses of the last steps and count them."""
        losses = [loss.item() for loss in self.pending]
        self.pending = []
        self.recent = [*self.recent, *losses]  # a new list: a snapshot may hold the old one
        self.loss_sum += sum(losses)
        self.loss_count += len(losses)

    def after_evaluation(self, loss: float, accuracy: float, rate: float, model: nn.Module) -> None:
        self.history.append(
            {
                "step": self.step,
                "seconds": round(self.seconds, 3),
                "tokens": self.tokens,
                "train_loss": self.loss_sum / self.loss_count,
                "loss": loss,
                "accuracy": accuracy,
                "learning_rate": rate,
            }
        )
        self.loss_sum, self.loss_count = 0.0, 0
        if loss < self.best_loss:
            self.best_loss, self.without_gain = loss, 0
            self.best = {name: weight.detach().cpu().clone() for name, weight in model.named_parameters()}
        else:
            self.without_gain += 1

    def plain(self) -> dict[str, Any]:
        """All that is not a tensor."""
        self.settle()
        return {one.name: getattr(self, one.name) for one in fields(self) if one.name not in ("best", "pending")}


class Snapshot:
    """The last good state, in memory, to which a run goes back when its loss is no number or jumps."""

    ROLLED_BACK = ("step", "loss_sum", "loss_count", "recent", "lowest", "noise")  # the clock, for one, goes on

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, state: State) -> None:
        state.settle()
        self.weights = [weight.detach().clone() for weight in model.parameters()]
        self.moments = [
            {name: value.clone() for name, value in optimizer.state.get(weight, {}).items()}
            for weight in model.parameters()
        ]
        self.plain = {name: getattr(state, name) for name in self.ROLLED_BACK}

    @torch.no_grad()
    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer, state: State, why: str) -> dict[str, Any]:
        """Go back; the batches since then will be skipped, since they would lead to the same place. What happened."""
        optimizer.state.clear()
        for weight, kept, moments in zip(model.parameters(), self.weights, self.moments, strict=True):
            weight.copy_(kept)
            if moments:
                optimizer.state[weight] = {name: value.clone() for name, value in moments.items()}
        back = self.plain["step"]
        event = {"step": state.step, "back_to": back, "seconds": round(state.seconds, 3), "why": why}
        state.skipped += state.step - back
        state.restores.append(event)
        for name, value in self.plain.items():
            setattr(state, name, value)
        state.pending = []
        return event

    def tensors(self) -> dict[str, Tensor]:
        """All tensors under one name each."""
        found = {str(place): weight for place, weight in enumerate(self.weights)}
        for place, moments in enumerate(self.moments):
            found |= {f"{place}.{name}": value for name, value in moments.items()}
        return {name: value.cpu().contiguous() for name, value in found.items()}

    def fill(self, tensors: Mapping[str, Tensor], plain: dict[str, Any]) -> None:
        """Become the snapshot whose ``tensors`` and ``plain`` these are.

        Raises:
            ValueError: if they are of another model.
        """
        device = self.weights[0].device
        weights = [tensors[str(place)].to(device, copy=True) for place in range(len(self.weights))]
        if [one.shape for one in weights] != [one.shape for one in self.weights] or plain.keys() != self.plain.keys():
            raise ValueError("good.safetensors holds the weights of another model")
        self.weights, self.plain = weights, plain
        self.moments = [{} for _ in weights]
        for key, value in tensors.items():
            place, _, name = key.partition(".")
            if name:
                self.moments[int(place)][name] = value.to(device, copy=True)

    def used_up(self, state: State) -> bool:
        """Whether the run has come back here as often as it may."""
        return sum(event["back_to"] == self.plain["step"] for event in state.restores) >= CHANCES
