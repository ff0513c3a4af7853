"""Where a pretraining run stands, and how it is kept on disk so that it can go on.

``State`` is what is not in the model or the optimiser; ``Store`` is the folder. Weights and the optimiser's state
are safetensors, the rest JSON: nothing is pickled, so a checkpoint from a stranger can do no more than be wrong.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


@dataclass
class State:
    """Where a run stands; all of it is in a checkpoint."""

    budget: dict[str, Any]
    step: int = 0
    seconds: float = 0.0
    tokens: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    best_loss: float = math.inf
    without_gain: int = 0
    best: dict[str, Tensor] = field(default_factory=dict)
    losses: list[Tensor] = field(default_factory=list)  # since the last evaluation

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
        self.losses.append(loss)

    def after_evaluation(self, loss: float, accuracy: float, rate: float, model: nn.Module) -> None:
        self.history.append(
            {
                "step": self.step,
                "seconds": round(self.seconds, 3),
                "tokens": self.tokens,
                "train_loss": float(torch.stack(self.losses).mean()),
                "loss": loss,
                "accuracy": accuracy,
                "learning_rate": rate,
            }
        )
        self.losses = []
        if loss < self.best_loss:
            self.best_loss, self.without_gain = loss, 0
            self.best = {name: weight.detach().cpu().clone() for name, weight in model.named_parameters()}
        else:
            self.without_gain += 1


class Store:
    """A run's folder: ``<out>.partial`` while it trains, ``<out>`` once it is whole.

    Weights and the optimiser's state are safetensors, the rest JSON; nothing is pickled.
    """

    def __init__(self, out: str | Path) -> None:
        self.out = Path(os.path.realpath(out))  # "." has no name to lengthen, and a link cannot be replaced
        self.partial = self.out.with_name(self.out.name + ".partial")
        self.checkpoint = self.partial / "checkpoint"

    def check(self, resume: bool) -> None:
        """Refuse, before anything is written, a folder that could not be kept apart from what is there."""
        if self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
            raise ValueError(f"out={str(self.out)!r} exists and is not an empty folder; choose another name")
        if os.path.ismount(self.out):
            raise ValueError(f"out={str(self.out)!r} is a mount point, which cannot be replaced; choose a folder in it")
        old = self.partial / "checkpoint.old"
        if old.is_dir() and not self.checkpoint.exists():  # cut off between the two renames of `save`
            old.rename(self.checkpoint)
        if not self.holds_checkpoint() and self.partial.is_dir():
            self.discard()  # the first save was cut off: nothing that could be resumed, nothing worth keeping
        if resume and not self.holds_checkpoint():
            raise ValueError(f"resume=True, but {str(self.partial)!r} holds no checkpoint; start without it")
        if not resume and self.partial.exists():
            raise ValueError(f"{str(self.partial)!r} is left from an interrupted run; resume it, or delete it first")

    def holds_checkpoint(self) -> bool:
        """Whether there is something to resume."""
        return (self.checkpoint / "state.json").is_file()

    def save(self, identity: dict[str, Any], state: State, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Replace the checkpoint by the present state; an interruption leaves the old one or the new one."""
        fresh, old = self.partial / "checkpoint.new", self.partial / "checkpoint.old"
        for leftover in (fresh, old):
            shutil.rmtree(leftover, ignore_errors=True)
        fresh.mkdir(parents=True)
        try:
            save_file(_weights(model), fresh / "model.safetensors")
            save_file(state.best, fresh / "best.safetensors")
            save_file(_optimizer_tensors(optimizer), fresh / "optimizer.safetensors")
        except SafetensorError as error:  # a full disk, most often
            shutil.rmtree(fresh, ignore_errors=True)
            raise OSError(f"the checkpoint could not be written to {str(self.partial)!r} ({error})") from error
        plain = {key: getattr(state, key) for key in _PLAIN}
        (fresh / "state.json").write_text(json.dumps({"identity": identity, "state": plain}), encoding="utf-8")
        if self.checkpoint.exists():
            self.checkpoint.rename(old)
        fresh.rename(self.checkpoint)
        shutil.rmtree(old, ignore_errors=True)

    def load(self, identity: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer) -> State:
        """Restore model and optimiser in place and return the state.

        Raises:
            ValueError: if the checkpoint is of another run.
        """
        try:
            return self._load(identity, model, optimizer)
        except (SafetensorError, json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"the checkpoint in {str(self.partial)!r} is damaged ({error}); delete it") from error

    def _load(self, identity: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer) -> State:
        saved = json.loads((self.checkpoint / "state.json").read_text(encoding="utf-8"))
        for key, value in json.loads(json.dumps(identity)).items():
            if saved["identity"][key] != value:
                raise ValueError(
                    f"the checkpoint in {str(self.partial)!r} has another {key} than this run; "
                    "resume with the same arguments, or delete it and start anew"
                )
        device = next(model.parameters()).device
        for name, weight in load_file(self.checkpoint / "model.safetensors").items():
            model.get_parameter(name).data.copy_(weight)
        _restore_optimizer(optimizer, load_file(self.checkpoint / "optimizer.safetensors"), device)
        return State(**saved["state"], best=load_file(self.checkpoint / "best.safetensors"))

    def discard(self) -> None:
        """Delete what the run has left so far: it came to nothing."""
        shutil.rmtree(self.partial, ignore_errors=True)

    def finish(self, model: Any, tokenizer: Any, records: Mapping[str, Any]) -> None:
        """Write model, tokenizer and ``records`` (as JSON), drop the checkpoint, and give the folder its name."""
        self.partial.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(self.partial)
        tokenizer.save_pretrained(self.partial)
        for name, record in records.items():
            (self.partial / name).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        shutil.rmtree(self.checkpoint, ignore_errors=True)
        if self.out.exists():
            self.out.rmdir()  # empty, as `check` saw; Windows cannot rename onto it
        self.partial.rename(self.out)


_PLAIN = ("budget", "step", "seconds", "tokens", "history", "best_loss", "without_gain")


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter once; the decoder's weight is the embedding's."""
    return {name: weight.detach().cpu().contiguous() for name, weight in model.named_parameters()}


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return {f"{index}.{name}": value.cpu().contiguous() for index, of in state.items() for name, value in of.items()}


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], device: torch.device) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".")
        state.setdefault(int(index), {})[name] = value.to(device)
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def fingerprint(texts: Sequence[str], held_out: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for text in (*texts, "\0", *held_out):
        digest.update(text.encode("utf-8", "surrogatepass") + b"\n")
    return digest.hexdigest()
